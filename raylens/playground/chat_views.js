// A conversation's last request as JSON and as code.

import { html } from './vendor/htm-preact.js'
import { CHAT_SNIPPETS } from './chat_snippets.js'
import { bodyOf, withUrls } from './conversation.js'
import { Exchange, Snippet } from './request_views.js'
import { strings } from './strings.js'

/** @param {{run: import('./run.js').Run}} props */
export function ChatJson({ run }) {
  const shown = bodyOf(
    run.request,
    ({ address, blob }) =>
      address ?? `data:${blob.type};base64,${strings.result.picture(blob.size)}`,
  )
  return html`
    <${Exchange} ...${{ run, shown }} getBody=${() => withUrls(run.request)} />
  `
}

/** @param {{run: import('./run.js').Run, model: string}} props */
export function ChatCode({ run, model }) {
  return html`
    <${Snippet} id="chat" ...${{ run, model }} snippets=${CHAT_SNIPPETS} />
  `
}
