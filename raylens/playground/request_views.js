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
  const { request, picture } = run
  const image =
    picture.address ??
    `data:${picture.blob.type};base64,${strings.result.picture(picture.blob.size)}`
  return html`
    <${Exchange}
      run=${run}
      shown=${{ image_url: image, ...request.body }}
      getBody=${() => withPicture(request.body, picture)}
    />
  `
}

/**
 * A request's body and its answer.
 * @param {{run: import('./run.js').Run, shown: any, getBody: () => Promise<any>}} props
 * `shown` is the body without its pictures, `getBody` returns the one that is copied.
 */
export function Exchange({ run, shown, getBody }) {
  const { result } = strings
  const answer = run.answer ?? run.error?.answer
  return html`
    <h3>
      ${result.request}
      <code>POST /${run.request.path}</code>
    </h3>
    <${CodeBlock}
      label=${result.request}
      text=${pretty(shown)}
      getText=${async () => pretty(await getBody())}
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
  const { picture } = run
  return html`
    <${Snippet} ...${{ id, run, model }} snippets=${SNIPPETS} />
    ${
      !picture.address &&
      !picture.example &&
      html`
        <p>
          <a href=${picture.view} download=${picture.name}>${strings.code.save(picture.name)}</a>
        </p>
      `
    }
  `
}

/**
 * A request as code, in the language that is chosen.
 * @param {{
 *   id: string,
 *   run: import('./run.js').Run,
 *   model: string,
 *   snippets: Record<string, (source: any) => {text: string, notes: string[]}>,
 * }} props
 */
export function Snippet({ id, run, model, snippets }) {
  const [language, setLanguage] = useState('curl')
  const { code } = strings
  const { request, picture } = run
  const { text, notes } = snippets[language]({
    request,
    picture,
    root,
    hasKey: getKey() !== '',
    model: run.model || request.body.model || model,
  })
  return html`
    <${Segmented}
      name=${`${id}-language`}
      class="language"
      label=${code.label}
      options=${Object.keys(snippets).map((name) => ({ id: name, label: code[name] }))}
      value=${language}
      onChange=${setLanguage}
    />
    <${CodeBlock} label=${code[language]} text=${text} />
    ${notes.map(
      (note) => html`
        <p class="hint" key=${note}>${note}</p>
      `,
    )}
  `
}
