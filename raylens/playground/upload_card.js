// The card of the tab "Jobs" that takes pictures and folders, and shows how far their upload is.

import { html, useRef } from './vendor/htm-preact.js'
import { useNow } from './clock.js'
import { ErrorNotice, Notice } from './controls.js'
import { readChosen, readDrop } from './dropped_files.js'
import { useDrops } from './drops.js'
import { STATES } from './job_view.js'
import { strings } from './strings.js'
import { isChosen } from './uploads.js'

const SHOWN_PICTURES = 24
const SHOWN_REFUSALS = 100

/** @typedef {import('./uploads.js').Uploads} Uploads */

/**
 * @param {{
 *   uploads: Uploads,
 *   jobs: Map<string, import('./job_list.js').Job>,
 *   isShown: boolean,
 *   onKeyWanted: () => void,
 * }} props
 */
export function UploadCard({ uploads, jobs, isShown, onKeyWanted }) {
  const { jobs: texts } = strings
  const add = (found) => found.length > 0 && uploads.add(found)
  const takeTransfer = (transfer) => readDrop(transfer).then(add)
  const isDragging = useDrops({ takeTransfer }, isShown)
  const { chosen } = uploads
  const refused = uploads.all.filter(({ state }) => state === 'refused')
  const ready = chosen.filter(({ state }) => state === 'ready')
  return html`
    <section class="card uploads" aria-labelledby="uploads-title">
      <h2 id="uploads-title">${texts.pictures}</h2>
      <${Chooser} isDragging=${isDragging} onFiles=${add} />
      ${
        chosen.length > 0 &&
        html`
          <div class="bar">
            <span role="status">${texts.chosen(ready.length, chosen.length - ready.length)}</span>
            <button type="button" class="quiet" onClick=${() => uploads.clear()}>
              ${texts.clear}
            </button>
          </div>
        `
      }
      ${
        ready.length > 0 &&
        html`
          <ul class="chosen" aria-hidden="true">
            ${ready.slice(0, SHOWN_PICTURES).map(
              ({ id, picture }) => html`
                <li key=${id}>${picture && html`<img src=${picture.thumbnail} alt="" />`}</li>
              `,
            )}
          </ul>
        `
      }
      ${
        refused.length > 0 &&
        html`
          <${Refusals} refused=${refused} uploads=${uploads} />
        `
      }
      <${Progress} uploads=${uploads} jobs=${jobs} onKeyWanted=${onKeyWanted} />
    </section>
  `
}

function Chooser({ isDragging, onFiles }) {
  const { jobs: texts } = strings
  const files = useRef(null)
  const folder = useRef(null)
  const take = (event) => {
    onFiles(readChosen(event.target.files))
    event.target.value = ''
  }
  const hidden = { type: 'file', class: 'hidden', multiple: true, tabindex: '-1', onChange: take }
  return html`
    <div class=${isDragging ? 'drop dragging' : 'drop'}>
      <p>${isDragging ? texts.dropNow : texts.drop}</p>
      <p class="hint">${texts.dropHelp}</p>
      <div class="actions">
        <button type="button" onClick=${() => files.current.click()}>${texts.chooseFiles}</button>
        <button type="button" onClick=${() => folder.current.click()}>${texts.chooseFolder}</button>
      </div>
      <input ref=${files} ...${hidden} aria-label=${texts.chooseFiles} />
      <input ref=${folder} webkitdirectory ...${hidden} aria-label=${texts.chooseFolder} />
    </div>
  `
}

function Refusals({ refused, uploads }) {
  const { jobs: texts } = strings
  return html`
    <details class="refusals">
      <summary>${texts.refused(refused.length)}</summary>
      <ul>
        ${refused.slice(0, SHOWN_REFUSALS).map(
          ({ id, path, reason }) => html`
            <li key=${id}>
              <span class="path">${path}</span>
              <span class="muted">${reason}</span>
            </li>
          `,
        )}
      </ul>
      <div class="actions">
        <button type="button" class="quiet" onClick=${() => uploads.again()}>${texts.again}</button>
        <button type="button" class="quiet" onClick=${() => uploads.hideRefused()}>
          ${texts.hide}
        </button>
      </div>
    </details>
  `
}

/** How far the submitted pictures are. */
function Progress({ uploads, jobs, onKeyWanted }) {
  const { jobs: texts } = strings
  const submitted = uploads.all.filter((upload) => upload.state !== 'refused' && !isChosen(upload))
  if (submitted.length === 0) return null
  const sent = submitted.filter(({ state }) => state === 'sent')
  const states = sent.map(({ jobId }) => jobs.get(jobId)?.status)
  const count = (state) => states.filter((each) => each === state).length
  const counts = STATES.map((state) => [state, count(state)]).filter(([, number]) => number > 0)
  const unlisted = count(undefined)
  const ended = sent.length - unlisted - count('queued') - count('running')
  return html`
    <div class="progress">
      <progress max=${submitted.length} value=${ended} aria-label=${texts.progress}></progress>
      <div class="bar">
        <span data-testid="progress">
          ${[
            texts.uploaded(sent.length, submitted.length),
            ...counts.map(([state, number]) =>
              texts.counts(number, texts.states[state].toLowerCase()),
            ),
            ...(unlisted > 0 ? [texts.counts(unlisted, texts.unlisted)] : []),
          ].join(' · ')}
        </span>
        ${
          !uploads.isBusy &&
          html`
            <button type="button" class="quiet" onClick=${() => uploads.hideSent()}>
              ${texts.hide}
            </button>
          `
        }
        ${
          uploads.isBusy &&
          html`
            <div class="actions">
              ${
                uploads.isPaused
                  ? html`
                      <button type="button" key="go" onClick=${() => uploads.resume()}>
                        ${texts.resume}
                      </button>
                    `
                  : html`
                      <button type="button" key="pause" onClick=${() => uploads.pause()}>
                        ${texts.pause}
                      </button>
                    `
              }
              <button type="button" onClick=${() => uploads.stop()}>${texts.stop}</button>
            </div>
          `
        }
      </div>
      ${uploads.hold && html`<${Hold} hold=${uploads.hold} ...${{ uploads, onKeyWanted }} />`}
    </div>
  `
}

/** Why the upload waits, and until when. `hold` may have ended by the time that the clock ticks. */
function Hold({ hold, uploads, onKeyWanted }) {
  const { jobs: texts } = strings
  const { error, until } = hold
  const seconds = Math.max(1, Math.ceil((until - useNow()) / 1000))
  if (error.needsKey) return html`<${ErrorNotice} ...${{ error, onKeyWanted }} />`
  return html`<${Notice} kind="note">
    <p>${error.reason}</p>
    <p>${texts.goesOn(seconds)}</p>
    <div class="actions">
      <button type="button" onClick=${() => uploads.resume()}>${texts.goesOnNow}</button>
    </div>
  <//>`
}
