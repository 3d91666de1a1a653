// The watches: jobs without an end, which look at a camera or a folder until they are stopped.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { ErrorNotice } from './controls.js'
import { isEnded } from './job_view.js'
import { pauseAfter } from './patience.js'
import { ask, asSentence } from './server.js'
import { strings } from './strings.js'

const REFRESH_MS = 3000
const IDLE_REFRESH_MS = 15_000
/** Statuses of a server without watches, or that shows none with this key. */
const NO_WATCHES = [401, 403, 404]
const SHOWN = 20

/** @param {{isShown: boolean, keyVersion: number}} props */
export function WatchesCard({ isShown, keyVersion }) {
  const [watches, setWatches] = useState([])
  const [problem, setProblem] = useState('')
  const [version, setVersion] = useState(0)
  useEffect(() => {
    if (!isShown) return undefined
    const abort = new AbortController()
    let timer = 0
    let failures = 0
    const load = async () => {
      try {
        const found = await ask(`api/v1/watches?limit=${SHOWN}`, { signal: abort.signal })
        failures = 0
        setWatches(found.watches)
        timer = setTimeout(load, found.watches.every(isEnded) ? IDLE_REFRESH_MS : REFRESH_MS)
      } catch (error) {
        if (abort.signal.aborted) return
        if (NO_WATCHES.includes(error.status)) setWatches([])
        else timer = setTimeout(load, pauseAfter(error, ++failures))
      }
    }
    load()
    return () => {
      clearTimeout(timer)
      abort.abort()
    }
  }, [isShown, keyVersion, version])
  const stop = async (id) => {
    try {
      await ask(`api/v1/watches/${id}`, { method: 'DELETE' })
      setProblem('')
    } catch (error) {
      setProblem(error.message)
    }
    setVersion((old) => old + 1)
  }
  if (watches.length === 0) return null
  return html`
    <${Table} ...${{ watches, problem }} onStop=${stop} onClose=${() => setProblem('')} />
  `
}

function Table({ watches, problem, onStop, onClose }) {
  const { watches: texts, jobs } = strings
  return html`
    <section class="card watches" aria-labelledby="watches-title">
      <h2 id="watches-title">${texts.title}</h2>
      <${ErrorNotice} error=${problem && { message: problem }} onClose=${onClose} />
      <div class="scroll" tabindex="0" role="region" aria-labelledby="watches-title">
        <table>
          <thead>
            <tr>
              ${['source', 'state', 'connection', 'last'].map(
                (name) => html`
                  <th key=${name} scope="col">${texts[name]}</th>
                `,
              )}
              <th></th>
            </tr>
          </thead>
          <tbody>
            ${watches.map(
              (watch) => html`
                <tr key=${watch.id}>
                  <th scope="row">${watch.source}</th>
                  <td>
                    <span class=${`state ${watch.status}`}>${jobs.states[watch.status]}</span>
                  </td>
                  <td>${connectionOf(watch)}</td>
                  <td>${lastEventOf(watch)}</td>
                  <td>
                    ${
                      !isEnded(watch) &&
                      html`
                        <button
                          type="button"
                          class="quiet"
                          aria-label=${texts.stopOf(watch.source)}
                          onClick=${() => onStop(watch.id)}
                        >
                          ${texts.stop}
                        </button>
                      `
                    }
                  </td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `
}

function connectionOf({ connection, error }) {
  if (!connection) return error ? asSentence(error.message) : ''
  const { status, problem } = connection
  return [strings.watches.connections[status] ?? status, problem].filter(Boolean).join(': ')
}

function lastEventOf({ recent_events: events }) {
  const last = events.at(-1)
  if (!last) return ''
  const { type, subject } = last.event
  return `${strings.time(last.at)}: ${strings.watches[type](subject)}`
}
