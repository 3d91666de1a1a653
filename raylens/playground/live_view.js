// The video of the tab "Live", and what lies over it.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { CameraIcon } from './icons.js'
import { asFinding, Marks } from './overlay.js'
import { strings } from './strings.js'

/**
 * What is shown.
 * @typedef {object} View
 * @property {MediaStream | null} stream
 * @property {boolean} isMirrored
 * @property {import('./overlay.js').Finding[]} findings those that the server hasn't drawn
 * @property {string} words likewise
 */

/**
 * @param {import('./live_session.js').LiveSession | null} session
 * @param {boolean} isMirrored
 * @param {boolean} hasResults whether the pipeline says what it finds, instead of drawing alone
 * @returns {View}
 */
export function viewOf(session, isMirrored, hasResults) {
  // Words on annotated video can't be read in a mirror.
  const isAnnotated = session?.annotated && !(isMirrored && hasResults)
  if (isAnnotated) return { stream: session.annotated, isMirrored, findings: [], words: '' }
  const result = session?.state === 'live' ? session.result : null
  return {
    stream: session?.local ?? null,
    isMirrored,
    findings: findingsOf(result, session?.subject, isMirrored),
    words: session?.partial || result?.text || '',
  }
}

/** @returns {import('./overlay.js').Finding[]} */
function findingsOf(result, subject, isMirrored) {
  const places = result?.objects ?? result?.points ?? []
  return places.map((place) => {
    const finding = asFinding(strings.result.finding(subject, place.number), place)
    return isMirrored ? { ...finding, x: 1 - finding.x - finding.width } : finding
  })
}

/**
 * @param {{
 *   view: View,
 *   videoRef: {current: HTMLVideoElement | null},
 *   veil: string,
 *   onEmpty: () => void,
 * }} props
 * `veil` is a sentence over the video; `onEmpty` is called if there is none, and it is wanted.
 */
export function LiveView({ view, videoRef, veil, onEmpty }) {
  const { live } = strings
  const [ratio, setRatio] = useState(16 / 9)
  const [active, setActive] = useState(null)
  const { stream, isMirrored, findings, words } = view
  useEffect(() => {
    const video = videoRef.current
    if (!video || video.srcObject === stream) return
    video.srcObject = stream
    video.play().catch(() => {}) // another stream came first
  }, [stream])
  if (!stream && !veil)
    return html`
      <button type="button" class="empty" onClick=${onEmpty}>
        <${CameraIcon} />
        <span>${live.empty}</span>
      </button>
    `
  const onSize = ({ target }) =>
    target.videoWidth && setRatio(target.videoWidth / target.videoHeight)
  return html`
    <div class=${isMirrored ? 'frame mirrored' : 'frame'} style=${{ '--ratio': ratio }}>
      <video
        ref=${videoRef}
        autoplay
        playsinline
        muted
        aria-label=${live.view}
        onResize=${onSize}
        onLoadedMetadata=${onSize}
      ></video>
      <${Marks} findings=${findings} active=${active} onActive=${setActive} />
      ${words && html`<p class="words" aria-hidden="true">${words}</p>`}
    </div>
    ${veil && html`<p class="veil" role="status">${veil}</p>`}
  `
}

/** Show an element on the whole screen, or no more. Return whether it is, and a switch. */
export function useFullScreen(ref) {
  const [isFull, setFull] = useState(false)
  useEffect(() => {
    const onChange = () => setFull(document.fullscreenElement === ref.current)
    document.addEventListener('fullscreenchange', onChange)
    return () => document.removeEventListener('fullscreenchange', onChange)
  }, [])
  const toggle = () => (isFull ? document.exitFullscreen() : ref.current.requestFullscreen())
  return [isFull, document.fullscreenEnabled ? toggle : null]
}
