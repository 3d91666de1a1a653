// What preprocessing did to a picture: before and after, side by side.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { Notice } from './controls.js'
import { ask, asSentence } from './server.js'
import { strings } from './strings.js'
import { withPicture } from './tasks.js'

/** Answers by run, so that each is asked for once. */
const seen = new WeakMap()

/** @param {import('./run.js').Run} run */
async function fetchSeen(run, signal) {
  if (!seen.has(run)) {
    const { recipe, model } = run.request.body
    const named = run.model || model
    const json = await withPicture(
      { ...(recipe ? { recipe } : {}), ...(named ? { model: named } : {}) },
      run.picture,
    )
    seen.set(run, await ask('v1/preprocess', { json, signal }))
  }
  return seen.get(run)
}

/** @param {{run: import('./run.js').Run}} props */
export function Preprocessing({ run }) {
  const [state, setState] = useState({ run: null, answer: null, error: '' })
  useEffect(() => {
    const abort = new AbortController()
    fetchSeen(run, abort.signal)
      .then((answer) => setState({ run, answer, error: '' }))
      .catch(
        (error) =>
          error.name === 'AbortError' || setState({ run, answer: null, error: error.message }),
      )
    return () => abort.abort()
  }, [run])
  if (state.run !== run)
    return html`
      <p class="muted" role="status">${strings.seen.loading}</p>
    `
  if (state.error) return html`<${Notice} kind="error"><p>${state.error}</p><//>`
  return html`
    <${SideBySide} picture=${run.picture} answer=${state.answer} />
  `
}

function SideBySide({ picture, answer }) {
  const { geometry, steps, warnings, image_url: after } = answer
  const { seen: texts, dimensions } = strings
  return html`
    <div class="side-by-side">
      <${Figure}
        src=${picture.view}
        title=${texts.before}
        size=${dimensions(...geometry.original)}
      />
      <${Figure} src=${after} title=${texts.after} size=${dimensions(...geometry.processed)} />
    </div>
    ${
      geometry.model &&
      html`
        <p>${texts.modelSize(...geometry.model)}</p>
      `
    }
    ${warnings.map(
      (warning) => html`<${Notice} key=${warning} kind="note"><p>${asSentence(warning)}</p><//>`,
    )}
    ${
      steps.length === 0
        ? html`
            <p>${texts.unchanged}</p>
          `
        : html`
            <div class="scroll" tabindex="0" role="region" aria-label=${texts.steps}>
              <table>
                <thead>
                  <tr>
                    <th scope="col">${texts.step}</th>
                    <th scope="col">${texts.did}</th>
                    <th scope="col" class="number">${texts.time}</th>
                  </tr>
                </thead>
                <tbody>
                  ${steps.map(
                    (step) => html`
                      <tr key=${step.name}>
                        <th scope="row">${step.name.replaceAll('_', ' ')}</th>
                        <td>${step.did}</td>
                        <td class="number">${strings.duration(step.ms)}</td>
                      </tr>
                    `,
                  )}
                </tbody>
              </table>
            </div>
          `
    }
  `
}

function Figure({ src, title, size }) {
  return html`
    <figure>
      <img src=${src} alt=${title} />
      <figcaption>
        <span>${title}</span>
        <span class="muted">${size}</span>
      </figcaption>
    </figure>
  `
}
