// The buttons below live video, and what has gone wrong with it.

import { html } from './vendor/htm-preact.js'
import { useNow } from './clock.js'
import { AwayNotice, ErrorNotice, Notice } from './controls.js'
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
 *   recording: {startedAt: Date | null, savedAs: string, start: () => void, stop: () => void},
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
  const isRecording = recording.startedAt !== null
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
            class=${isRecording ? 'recording' : ''}
            disabled=${!isLive && !isRecording}
            onClick=${isRecording ? recording.stop : recording.start}
          >
            ${isRecording ? live.stopRecording : live.record}
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
    ${recording.savedAs && html`<p role="status">${live.savedAs(recording.savedAs)}</p>`}
  `
}

/** How long a recording has been going on. @param {{since: Date}} props */
export function RecordingTime({ since }) {
  const { live } = strings
  const seconds = Math.floor((useNow() - since) / SECOND_MS)
  return html`
    <p class="recording-time" role="timer" aria-label=${live.recordingTime}>
      ${live.elapsed(Math.max(0, seconds))}
    </p>
  `
}

/**
 * @param {{
 *   session: import('./live_session.js').LiveSession | null,
 *   ownError: Error | null,
 *   isAway: boolean,
 *   onKeyWanted: () => void,
 * }} props
 */
export function Problem({ session, ownError, isAway, onKeyWanted }) {
  const { live } = strings
  const isWaiting = session?.state === 'waiting'
  const error = ownError ?? session?.error
  const problem = session?.problem && !session.problem.field && session.problem
  const waiting = () => html`${error.reason ?? error.message} <${Countdown} until=${session.retryAt} />`
  return html`
    ${isAway && !session?.isOpen && html`<${AwayNotice} />`}
    <${ErrorNotice} ...${{ error, onKeyWanted }} text=${isWaiting ? waiting() : undefined}>
      ${
        isWaiting &&
        html`
          <button type="button" onClick=${() => session.retryNow()}>${live.retryNow}</button>
        `
      }
    <//>
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

function Countdown({ until }) {
  return strings.live.retryIn(Math.max(0, Math.ceil((until - useNow()) / SECOND_MS)))
}
