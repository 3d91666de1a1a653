// What live video has said so far: the newest answer, figures, earlier answers, and events.

import { html } from './vendor/htm-preact.js'
import { Plot } from './plot.js'
import { strings } from './strings.js'

/**
 * @typedef {import('./live_session.js').LiveSession} LiveSession
 * @param {{session: LiveSession | null, onSaveLog: () => void}} props
 */
export function LiveResult({ session, onSaveLog }) {
  const { live, result } = strings
  return html`
    <section class="card result answers" aria-labelledby="live-result-title">
      <div class="bar">
        <h2 id="live-result-title">${result.title}</h2>
        <span class=${`state ${stateClass(session)}`} role="status">${stateOf(session)}</span>
      </div>
      ${
        session === null
          ? html` <p class="muted">${live.noResult}</p> `
          : html`
              <${Answer} session=${session} />
              <${Figures} session=${session} />
            `
      }
      ${
        session !== null &&
        session.log.length > 0 &&
        html`
          <div class="actions">
            <button type="button" onClick=${onSaveLog}>${live.saveLog}</button>
          </div>
        `
      }
    </section>
  `
}

/** @param {{session: LiveSession | null}} props */
export function LiveLists({ session }) {
  return html`
    <${Events} session=${session} />
    <${Answers} session=${session} />
  `
}

/** @param {LiveSession | null} session */
function stateOf(session) {
  const { states } = strings.live
  if (session === null) return states.idle
  if (session.state === 'live') return session.isPaused ? states.paused : states[session.kind]
  return states[session.state]
}

function stateClass(session) {
  if (session?.state === 'live') return session.isPaused ? 'degraded' : 'healthy'
  if (session?.state === 'waiting' || session?.error) return 'away'
  return session?.state === 'connecting' ? 'degraded' : ''
}

function Answer({ session }) {
  const { result, partial, state } = session
  const { live } = strings
  if (partial) return html` <p class="answer streaming" data-testid="live-answer">${partial}</p> `
  if (result === null)
    return state === 'live'
      ? html` <p class="answer muted working" role="status">${live.waitingForResult}</p> `
      : null
  return html` <p class="answer" data-testid="live-answer">${summaryOf(result, session.subject)}</p> `
}

function summaryOf(result, subject) {
  if (result.text !== undefined) return result.text || strings.result.noText
  const numbers = (result.objects ?? result.points).map((place) => place.number)
  return strings.live.found(numbers, subject)
}

function Figures({ session }) {
  const { live, result, duration, number } = strings
  const { delayMs, fps, perSecond, dropped, bitsUp, bitsDown, delays, model } = session.figures
  const entries = [
    [live.delay, delayMs !== null && duration(delayMs)],
    [live.fps, fps !== null && number(fps)],
    [live.perSecond, perSecond !== null && number(perSecond)],
    [live.dropped, dropped !== null && number(dropped)],
    [live.traffic, bitsUp !== null && live.bits(bitsUp, bitsDown)],
    [result.model, model],
  ].filter(([, value]) => value)
  if (entries.length === 0) return null
  return html`
    <dl class="figures">
      ${entries.map(
        ([name, value]) => html`
          <div key=${name}>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>
        `,
      )}
    </dl>
    ${delays.length > 1 && html`<${Delays} values=${delays} />`}
  `
}

function Delays({ values }) {
  const [least, most] = [Math.min(...values), Math.max(...values)]
  return html`
    <${Plot}
      times=${values.map((value, index) => index)}
      lines=${[values]}
      label=${strings.live.delays(values.length, least, most)}
    />
  `
}

/** A list of which the newest comes first; none if it is empty. */
function List({ id, title, entries }) {
  if (entries.length === 0) return null
  return html`
    <section class="card entries" aria-labelledby=${id}>
      <h2 id=${id}>${title}</h2>
      <ol tabindex="0" aria-labelledby=${id}>
        ${entries.map(
          ({ at, text }, index) => html`
            <li key=${entries.length - index}>
              <time datetime=${at.toISOString()}>${strings.time(at.toISOString())}</time>
              <span>${text}</span>
            </li>
          `,
        )}
      </ol>
    </section>
  `
}

function Events({ session }) {
  const { live } = strings
  const entries = (session?.events ?? []).map(({ at, event }) => ({ at, text: live.event(event) }))
  return html` <${List} id="live-events" title=${live.events} entries=${entries} /> `
}

function Answers({ session }) {
  const { live } = strings
  const entries = (session?.answers ?? []).map(({ at, text, times }) => ({
    at,
    text: live.answer(text, times),
  }))
  return html` <${List} id="live-answers" title=${live.answers} entries=${entries} /> `
}
