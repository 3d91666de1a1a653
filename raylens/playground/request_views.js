// A request and its answer as JSON, and the request as code.

import { html, useState } from './vendor/htm-preact.js'
import { CodeBlock, Segmented } from './controls.js'
import { getKey, root } from './server.js'
import { SNIPPETS } from './snippets.js'
import { strings } from './strings.js'
import { withPicture } from './tasks.js'

const pretty = (value) => (typeof value === 'string' ? value : JSON.stringify(value, null, 2))

/** @param {{run: import('./run.js').Run}} props */
export function Json({ run }) {
  const { result } = strings
  const { request, picture } = run
  const image =
    picture.address ?? `data:${picture.blob.type};base64,${result.picture(picture.blob.size)}`
  const shown = pretty({ image_url: image, ...request.body })
  const answer = run.answer ?? run.error?.answer
  return html`
    <h3>
      ${result.request}
      <code>POST /${request.path}</code>
    </h3>
    <${CodeBlock}
      label=${result.request}
      text=${shown}
      getText=${async () => pretty(await withPicture(request.body, picture))}
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

/** @param {{id: string, run: import('./run.js').Run, model: string}} props */
export function Code({ id, run, model }) {
  const [language, setLanguage] = useState('curl')
  const { code } = strings
  const { request, picture } = run
  const source = {
    request,
    picture,
    root,
    hasKey: getKey() !== '',
    model: run.model || request.body.model || model,
  }
  const { text, notes } = SNIPPETS[language](source)
  const options = Object.keys(SNIPPETS).map((id) => ({ id, label: code[id] }))
  return html`
    <${Segmented}
      name=${`${id}-language`}
      class="language"
      label=${code.label}
      options=${options}
      value=${language}
      onChange=${setLanguage}
    />
    <${CodeBlock} label=${code[language]} text=${text} />
    ${notes.map(
      (note) => html`
        <p class="hint" key=${note}>${note}</p>
      `,
    )}
    ${
      !picture.address &&
      !picture.example &&
      html`
        <p><a href=${picture.view} download=${picture.name}>${code.save(picture.name)}</a></p>
      `
    }
  `
}
