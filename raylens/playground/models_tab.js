// The tab "Models": what the server serves, and whether it is loaded.

import { html } from './vendor/htm-preact.js'
import { strings } from './strings.js'

/** @param {{health: any}} props the answer of /health; null without one */
export function ModelsTab({ health }) {
  const { models: texts } = strings
  const models = Object.entries(health?.models ?? {})
  return html`
    <section class="card models" aria-labelledby="models-title">
      <h2 id="models-title">${texts.title}</h2>
      ${
        models.length === 0
          ? html`
              <p class="muted">${texts.none}</p>
            `
          : html`
              <div class="scroll" tabindex="0" role="region" aria-labelledby="models-title">
                <table>
                  <thead>
                    <tr>
                      ${['model', 'state', 'family', 'device', 'tasks', 'checkpoint'].map(
                        (name) => html`
                          <th key=${name} scope="col">${texts[name]}</th>
                        `,
                      )}
                    </tr>
                  </thead>
                  <tbody>
                    ${models.map(
                      ([name, model]) => html`
                        <tr key=${name}>
                          <th scope="row">${name}</th>
                          <td>
                            <span class=${`state ${model.loaded ? 'healthy' : 'away'}`}>
                              ${model.loaded ? texts.loaded : texts.missing}
                            </span>
                          </td>
                          <td>${model.family}</td>
                          <td>${model.device}</td>
                          <td>${model.tasks?.join(', ')}</td>
                          <td><code>${model.checkpoint}</code></td>
                        </tr>
                      `,
                    )}
                  </tbody>
                </table>
              </div>
            `
      }
    </section>
  `
}
