// A conversation's last request as JSON and as code.

import { html, useState } from './vendor/htm-preact.js'
import { withUrls, bodyOf } from './conversation.js'
import { CHAT_SNIPPETS } from './chat_snippets.js'
import { CodeBlock, Segmented } from './controls.js'
import { getKey, root } from './server.js'
import { strings } from './strings.js'

const pretty = (value) => (typeof value === 'string' ? value : JSON.stringify(value, null, 2))

/** @param {{run: import('./run.js').Run}} props */
export function ChatJson({ run }) {
  const { result } = strings
  const { request } = run
  const shown = bodyOf(
    request,
    ({ address, blob }) => address ?? `data:${blob.type};base64,${result.picture(blob.size)}`,
  )
  const answer = run.answer ?? run.error?.answer
  return html`
    <h3>
      ${result.request}
      <code>POST /${request.path}</code>
    </h3>
    <${CodeBlock}
      label=${result.request}
      text=${pretty(shown)}
      getText=${async () => pretty(await withUrls(request))}
    />
    ${
      answer &&
      html`
        <h3>${result.response}</h3>
        <${CodeBlock} label=${result.response} text=${pretty(answer)} />
      `
    }
  `
}

/** @param {{run: import('./run.js').Run, model: string}} props */
export function ChatCode({ run, model }) {
  const [language, setLanguage] = useState('curl')
  const { code } = strings
  const { text, notes } = CHAT_SNIPPETS[language]({
    request: run.request,
    root,
    hasKey: getKey() !== '',
    model: run.model || run.request.body.model || model,
  })
  return html`
    <${Segmented}
      name="chat-language"
      class="language"
      label=${code.label}
      options=${Object.keys(CHAT_SNIPPETS).map((id) => ({ id, label: code[id] }))}
      value=${language}
      onChange=${setLanguage}
    />
    <${CodeBlock} label=${code[language]} text=${text} />
    ${notes.map((note) => html`
      <p class="hint" key=${note}>${note}</p>
    `)}
  `
}
