// The buttons below live video, and what has gone wrong with it.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { Notice } from './controls.js'
import { Recording } from './live_recording.js'
import { asSentence } from './server.js'
import { strings } from './strings.js'

const SECOND_MS = 1000

/**
 * @param {{
 *   session: import('./live_session.js').LiveSession | null,
 *   canStart: boolean,
 *   isMirrored: boolean,
 *   isFull: boolean,
 *   recording: {isOn: boolean, start: () => void, stop: () => void},
 *   onStart: () => void,
 *   onStop: () => void,
 *   onMirror: () => void,
 *   onFull: (() => void) | null,
 *   onSnapshot: () => void,
 * }} props
 */
export function Tools(props) {
  const { session, canStart, isMirrored, isFull, recording } = props
  const { onStart, onStop, onMirror, onFull, onSnapshot } = props
  const { live } = strings
  const isLive = session?.state === 'live'
  const hasVideo = session?.isOpen && session.local !== null
  const isPaused = session?.isPaused ?? false
  return html`
    <div class="bar">
      <button
        type="button"
        class="primary"
        disabled=${!canStart}
        onClick=${session?.isOpen ? onStop : onStart}
      >
        ${session?.isOpen ? live.stop : live.start}
      </button>
      <button type="button" disabled=${!isLive} onClick=${() => session.pause(!isPaused)}>
        ${isPaused ? live.resume : live.pause}
      </button>
      <button type="button" disabled=${!hasVideo} onClick=${onSnapshot}>${live.snapshot}</button>
      ${
        Recording.type &&
        html`
          <button
            type="button"
            class=${recording.isOn ? 'recording' : ''}
            disabled=${!isLive && !recording.isOn}
            onClick=${recording.isOn ? recording.stop : recording.start}
          >
            ${recording.isOn ? live.stopRecording : live.record}
          </button>
        `
      }
      <button type="button" aria-pressed=${String(isMirrored)} onClick=${onMirror}>
        ${live.mirror}
      </button>
      ${
        onFull &&
        html`
          <button type="button" disabled=${!hasVideo} onClick=${onFull}>
            ${isFull ? live.leaveFull : live.full}
          </button>
        `
      }
    </div>
  `
}

/**
 * @param {{
 *   session: import('./live_session.js').LiveSession | null,
 *   ownError: Error | null,
 *   serverError: any,
 *   onKeyWanted: () => void,
 * }} props
 */
export function Problem({ session, ownError, serverError, onKeyWanted }) {
  const { live, errors } = strings
  const isWaiting = session?.state === 'waiting'
  const missesKey = serverError?.needsKey && !session?.isOpen
  const error = ownError ?? session?.error ?? (missesKey ? serverError : null)
  const problem = session?.problem && !session.problem.field && session.problem
  return html`
    ${
      error &&
      html`<${Notice} kind="error">
        <p>
          ${isWaiting ? reasonOf(error) : error.message}${isWaiting && html` <${Countdown} until=${session.retryAt} />`}
        </p>
        <div class="actions">
          ${
            error.needsKey &&
            html` <button type="button" onClick=${onKeyWanted}>${errors.enterKey}</button> `
          }
          ${
            isWaiting &&
            html`
              <button type="button" onClick=${() => session.retryNow()}>${live.retryNow}</button>
            `
          }
        </div>
      <//>`
    }
    ${
      session?.state === 'live' &&
      session.fallback &&
      html`<${Notice} kind="note"><p>${live.fallback(session.fallback)}</p><//>`
    }
    ${
      session?.state === 'live' &&
      problem &&
      html`<${Notice} kind="error"><p>${live.frameFailed(asSentence(problem.error))}</p><//>`
    }
  `
}

/** Return why the page waits, without advice to try again. */
function reasonOf(error) {
  const detail = error.answer?.detail
  return typeof detail === 'string' ? asSentence(detail) : error.message
}

function Countdown({ until }) {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), SECOND_MS)
    return () => clearInterval(timer)
  }, [])
  return strings.live.retryIn(Math.max(0, Math.ceil((until - now) / SECOND_MS)))
}
