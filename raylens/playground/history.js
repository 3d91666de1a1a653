// The earlier runs of a tab.

import { html } from './vendor/htm-preact.js'
import { THUMBNAIL } from './pictures.js'
import { strings } from './strings.js'
import { isText } from './tasks.js'

/**
 * @param {{
 *   runs: import('./run.js').Run[],
 *   current: import('./run.js').Run | null,
 *   onSelect: (run: import('./run.js').Run) => void,
 *   onClear: () => void,
 * }} props
 */
export function History({ runs, current, onSelect, onClear }) {
  const { history, tasks } = strings
  if (runs.length === 0) return null
  return html`
    <section class="card history" aria-labelledby="history-title">
      <div class="bar">
        <h2 id="history-title">${history.title}</h2>
        <span class="hint">${history.kept}</span>
        <button type="button" class="quiet" onClick=${onClear}>${history.clear}</button>
      </div>
      <ul class="strip">
        ${runs.map(
          (run) => html`
            <li key=${run.id}>
              <button
                type="button"
                class="past"
                aria-current=${run === current ? 'true' : undefined}
                onClick=${() => onSelect(run)}
              >
                <img src=${run.picture.thumbnail} alt="" width=${THUMBNAIL.width} height=${THUMBNAIL.height} />
                <span class="kind">${tasks[run.request.task]}</span>
                <span class="text">${summaryOf(run)}</span>
              </button>
            </li>
          `,
        )}
      </ul>
    </section>
  `
}

function summaryOf(run) {
  if (run.state === 'failed') return strings.history.failed
  if (run.state === 'working') return '…'
  if (isText(run.request.task)) return run.request.prompt || run.text
  return strings.result.found(run.boxes.length + run.points.length, run.request.prompt)
}
