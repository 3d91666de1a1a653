// Videos before they are sent: their type, size and length, and a frame as their thumbnail.

import { drawThumbnail, leaseOf, PictureError, takeFrame } from './pictures.js'
import { strings } from './strings.js'

const PROBE_MS = 5000

/**
 * @typedef {object} VideoLimits
 * @property {number} video_bytes
 * @property {number} video_seconds
 * @property {number} body_bytes
 */

/**
 * A video that can be sent. Its length, sides and thumbnail are missing if the browser can't play
 * it.
 * @typedef {object} Video
 * @property {string} name
 * @property {Blob} blob
 * @property {string} view
 * @property {string} thumbnail
 * @property {object} lease of its URLs
 * @property {number} [seconds]
 * @property {number} [width]
 * @property {number} [height]
 */

/**
 * Return the media type of a file by its first bytes; empty if it is no video that servers read.
 * @param {Uint8Array} head
 */
export function sniffVideo(head) {
  const text = String.fromCharCode(...head)
  if (text.slice(4, 8) === 'ftyp') return 'video/mp4'
  if (text.startsWith('\x1a\x45\xdf\xa3')) return 'video/webm'
  if (text.startsWith('RIFF') && text.slice(8, 12) === 'AVI ') return 'video/x-msvideo'
  return ''
}

/**
 * Return a video. Raises PictureError if the server would refuse it.
 * @param {Blob} blob
 * @param {string} name
 * @param {string} type
 * @param {VideoLimits | null} limits
 * @returns {Promise<Video>}
 */
export async function readVideo(blob, name, type, limits) {
  const { errors } = strings
  const most = limits ? Math.min(limits.video_bytes, inBase64(limits.body_bytes)) : Infinity
  if (blob.size > most) throw new PictureError(errors.videoTooLarge(name, blob.size, most))
  const typed = blob.type === type ? blob : blob.slice(0, blob.size, type)
  const view = URL.createObjectURL(typed)
  const seen = await probe(view)
  const lease = leaseOf([view, ...(seen.thumbnail ? [seen.thumbnail] : [])])
  if (limits && seen.seconds > limits.video_seconds)
    throw new PictureError(errors.videoTooLong(name, seen.seconds, limits.video_seconds))
  return { name, blob: typed, view, thumbnail: '', lease, ...seen }
}

/** Return how many bytes fit into `chars` characters of base64. */
export const inBase64 = (chars) => Math.floor((chars * 3) / 4)

/** Return what the browser finds out about a video; nothing if it can't play it. */
async function probe(url) {
  const video = document.createElement('video')
  Object.assign(video, { muted: true, preload: 'auto' })
  try {
    const loaded = event(video, 'loadeddata')
    video.src = url
    await loaded
    const sought = event(video, 'seeked')
    video.currentTime = Number.isFinite(video.duration) ? video.duration / 2 : 0
    await sought
    const bitmap = await createImageBitmap(await takeFrame(video))
    const thumbnail = await drawThumbnail(bitmap)
    bitmap.close()
    const { duration, videoWidth: width, videoHeight: height } = video
    return { thumbnail, width, height, ...(Number.isFinite(duration) ? { seconds: duration } : {}) }
  } catch {
    return {}
  } finally {
    video.removeAttribute('src')
    video.load()
  }
}

/** Wait for an event of a video. Rejects on an error, and after a while. */
function event(video, name) {
  return new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { once: true })
    video.addEventListener('error', reject, { once: true })
    setTimeout(reject, PROBE_MS)
  })
}
