// Where live video comes from: a camera, or a video file that is shown in a loop.

import { takeFrame } from './pictures.js'
import { strings } from './strings.js'
import { every } from './ticks.js'

/** Widths and heights that a camera is asked for. */
export const SIZES = [
  [320, 240],
  [640, 480],
  [1280, 720],
  [1920, 1080],
]
const FACING = ['user', 'environment']
const FPS = 30

/** Why there is no video, as a sentence for the user. */
export class SourceError extends Error {}

/**
 * @typedef {object} Source
 * @property {MediaStream} stream
 * @property {Promise<SourceError>} broken why there is no more video
 * @property {() => void} stop
 */

/**
 * @typedef {object} CameraChoice
 * @property {string} device its id, "user" or "environment" for those of a phone, or empty
 * @property {number} size an index of SIZES
 */

/**
 * Open a camera. Raises SourceError.
 * @param {CameraChoice} choice
 * @returns {Promise<Source>}
 */
export async function openCamera({ device, size }) {
  const { live, errors } = strings
  if (!navigator.mediaDevices) throw new SourceError(errors.cameraInsecure)
  const [width, height] = SIZES[size]
  const video = { width: { ideal: width }, height: { ideal: height }, frameRate: { ideal: FPS } }
  if (FACING.includes(device)) video.facingMode = device
  else if (device) video.deviceId = { exact: device }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video })
    const [track] = stream.getVideoTracks()
    return asSource(stream, once(track, 'ended', live.sourceEnded))
  } catch (error) {
    if (error.name === 'NotAllowedError') throw new SourceError(live.cameraDenied)
    if (error.name === 'NotReadableError') throw new SourceError(live.cameraBusy)
    throw new SourceError(errors.cameraMissing)
  }
}

/** @returns {Promise<MediaDeviceInfo[]>} the cameras; without names until one has been allowed */
export async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? []
  return devices.filter(({ kind, deviceId }) => kind === 'videoinput' && deviceId)
}

/**
 * Show a video file in a loop. Raises SourceError.
 *
 * Its frames pass through a canvas: those of the file itself begin anew with each loop, and WebRTC
 * sends no frame with a time that has been.
 * @param {File} file
 * @returns {Promise<Source>}
 */
export async function openFile(file) {
  const url = URL.createObjectURL(file)
  const video = document.createElement('video')
  Object.assign(video, { muted: true, loop: true, playsInline: true, src: url })
  const release = () => {
    video.removeAttribute('src')
    video.load()
    URL.revokeObjectURL(url)
  }
  // A file with sound alone plays, too.
  await video.play().catch(() => {})
  if (video.videoWidth === 0) {
    release()
    throw new SourceError(strings.live.fileUnplayable(file.name))
  }
  const canvas = document.createElement('canvas')
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight })
  const context = canvas.getContext('2d')
  const stopDrawing = every(1000 / FPS, () => context.drawImage(video, 0, 0))
  const broken = once(video, 'error', strings.live.fileBroken(file.name))
  return asSource(canvas.captureStream(FPS), broken, () => {
    stopDrawing()
    release()
  })
}

/** Return what a stream shows now, as a picture. @param {MediaStream} stream @returns {Promise<Blob>} */
export async function frameOf(stream) {
  const video = document.createElement('video')
  Object.assign(video, { muted: true, playsInline: true, srcObject: stream })
  await video.play()
  const blob = await takeFrame(video)
  video.srcObject = null
  return blob
}

/** @returns {Promise<SourceError>} once something happens to a target */
function once(target, type, message) {
  return new Promise((resolve) => {
    target.addEventListener(type, () => resolve(new SourceError(message)), { once: true })
  })
}

/** @returns {Source} */
function asSource(stream, broken, release = () => {}) {
  const stop = () => {
    for (const track of stream.getTracks()) track.stop()
    release()
  }
  return { stream, broken, stop }
}
