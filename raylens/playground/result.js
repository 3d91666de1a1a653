// A card with the answer to a request: the answer, preprocessing, JSON, and the request as code.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { Answer } from './answer.js'
import { TabPanel, Tabs } from './controls.js'
import { Preprocessing } from './preprocessing.js'
import { Code, Json } from './request_views.js'
import { strings } from './strings.js'

const VIEWS = ['answer', 'seen', 'json', 'code']

/**
 * @param {{
 *   id: string,
 *   title: string,
 *   empty: string,
 *   run: import('./run.js').Run | null,
 *   isOld: boolean,
 *   model: string,
 *   active: number | null,
 *   onActive: (index: number | null) => void,
 *   onKeyWanted: () => void,
 *   onRetry: () => void,
 *   comparison?: import('./comparison.js').Comparison,
 *   children?: any,
 * }} props
 * `id` is the card's, since several may be on the page. `empty` is shown without a run. `isOld` says
 * that the settings have changed since the run. `model` is the one that would answer.
 */
export function Result({ id, title, empty, run, isOld, model, children, ...shown }) {
  const [view, setView] = useState('answer')
  // Whoever asks wants to see the answer first.
  useEffect(() => setView('answer'), [run?.id])
  const { result } = strings
  const titleId = `${id}-title`
  if (run === null) {
    return html`
      <section class="card result" id=${id} aria-labelledby=${titleId}>
        <h2 id=${titleId}>${title}</h2>
        ${children}
        <p class="muted">${empty}</p>
      </section>
    `
  }
  const views = {
    answer: () => html`
      <${Answer} run=${run} ...${shown} />
    `,
    seen: () => html`
      <${Preprocessing} run=${run} />
    `,
    json: () => html`
      <${Json} run=${run} />
    `,
    code: () => html`
      <${Code} ...${{ id, run, model }} />
    `,
  }
  return html`
    <section class=${isOld ? 'card result old' : 'card result'} id=${id} aria-labelledby=${titleId}>
      <div class="bar">
        <h2 id=${titleId}>${title}</h2>
        <${Tabs}
          id=${`${id}-view`}
          class="subtabs"
          label=${result.views}
          tabs=${VIEWS.map((name) => ({ id: name, label: result[name] }))}
          current=${view}
          onSelect=${setView}
        />
      </div>
      ${children}
      ${
        isOld &&
        html`
          <p class="hint since" role="status">${result.old}</p>
        `
      }
      <${TabPanel} id=${`${id}-view`} current=${view}>${views[view]()}<//>
      <p class="hidden" role="status">${run.state === 'done' ? result.announceDone : ''}</p>
    </section>
  `
}
