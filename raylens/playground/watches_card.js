// The watches: jobs without an end, which look at a camera or a folder until they are stopped.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { isEnded } from './job_list.js'
import { ask, ServerError } from './server.js'
import { strings } from './strings.js'

const REFRESH_MS = 3000
const SHOWN = 20

/** @param {{isShown: boolean, keyVersion: number}} props */
export function WatchesCard({ isShown, keyVersion }) {
  const [watches, setWatches] = useState([])
  const [version, setVersion] = useState(0)
  useEffect(() => {
    if (!isShown) return undefined
    const abort = new AbortController()
    let timer = 0
    const load = async () => {
      const answer = await ask(`api/v1/watches?limit=${SHOWN}`, { signal: abort.signal }).catch(
        (error) => (error instanceof ServerError ? { watches: [] } : null),
      )
      if (!answer || abort.signal.aborted) return
      setWatches(answer.watches)
      if (answer.watches.some((watch) => !isEnded(watch))) timer = setTimeout(load, REFRESH_MS)
    }
    load()
    return () => {
      clearTimeout(timer)
      abort.abort()
    }
  }, [isShown, keyVersion, version])
  const stop = async (id) => {
    await ask(`api/v1/watches/${id}`, { method: 'DELETE' }).catch(() => null)
    setVersion((old) => old + 1)
  }
  if (watches.length === 0) return null
  return html`
    <${Table} watches=${watches} onStop=${stop} />
  `
}

function Table({ watches, onStop }) {
  const { watches: texts, jobs } = strings
  return html`
    <section class="card watches" aria-labelledby="watches-title">
      <h2 id="watches-title">${texts.title}</h2>
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
                  <td>${watch.connection?.status ?? watch.error?.message ?? ''}</td>
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

function lastEventOf({ recent_events: events }) {
  const last = events.at(-1)
  if (!last) return ''
  const { type, subject } = last.event
  return `${strings.time(last.at)}: ${strings.watches[type](subject)}`
}
