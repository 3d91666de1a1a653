// Pictures before they are sent: their type, size and sides, smaller copies, and thumbnails.

import { strings } from './strings.js'

export const THUMBNAIL = { width: 120, height: 90 }
const WHOLE_SIDE = 320
export const SHRINK_SIDES = [2048, 1024, 512]
const JPEG_QUALITY = 0.92
const HEADER_BYTES = 32

/**
 * A picture that can be sent.
 * @typedef {object} Picture
 * @property {string} name a file's name
 * @property {Blob} blob what is sent, if there is no `address`
 * @property {number} width upright
 * @property {number} height upright
 * @property {string} view the URL of what the page shows
 * @property {string} thumbnail its URL
 * @property {object} lease of its URLs
 * @property {string} [address] the web address from which the server takes it
 * @property {string} [example] the name of a bundled example
 */

/**
 * @typedef {object} Limits
 * @property {number} image_bytes
 * @property {number} image_pixels
 * @property {number} min_image_side
 * @property {number} max_image_side
 */

/** A picture that can't be sent. Its message is a sentence for the user. */
export class PictureError extends Error {}

/** A picture of which a smaller copy may be sent. */
export class TooLargeError extends PictureError {}

/** A format that the server reads, but not this browser. */
export class UndisplayableError extends Error {}

const leases = new FinalizationRegistry((urls) => urls.forEach((url) => URL.revokeObjectURL(url)))

/**
 * Return an object that keeps URLs valid, to be held by what shows them and by its copies. Browsers
 * keep in memory what a URL leads to until it is revoked: here, once nobody holds the lease.
 * @param {string[]} urls
 */
export function leaseOf(urls) {
  const lease = {}
  leases.register(lease, urls)
  return lease
}

/** @param {Blob} blob @returns {Promise<Uint8Array>} the bytes that tell its type */
export async function readHead(blob) {
  return new Uint8Array(await blob.slice(0, HEADER_BYTES).arrayBuffer())
}

/**
 * Return the media type of a file by its first bytes; empty if it is no picture.
 * @param {Uint8Array} head
 */
export function sniff(head) {
  const text = String.fromCharCode(...head)
  if (text.startsWith('\xff\xd8\xff')) return 'image/jpeg'
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'image/png'
  if (text.startsWith('RIFF') && text.slice(8, 12) === 'WEBP') return 'image/webp'
  if (/^GIF8[79]a/.test(text)) return 'image/gif'
  if (text.startsWith('BM')) return 'image/bmp'
  if (/^(II\*\0|MM\0\*)/.test(text)) return 'image/tiff'
  if (text.slice(4, 8) === 'ftyp') {
    if (/avi[fs]/.test(text.slice(8))) return 'image/avif'
    if (/hei[cxm]|mif1/.test(text.slice(8))) return 'image/heic'
  }
  return ''
}

/**
 * Return a picture, shrunk to `side` pixels if that is given and it is larger. Raises PictureError,
 * and UndisplayableError.
 * @param {Blob} blob
 * @param {string} name
 * @param {Limits | null} limits
 * @param {number | null} side
 * @param {boolean} hasWholeThumbnail whether the thumbnail shows all of the picture, in its own shape
 * @returns {Promise<Picture>}
 */
export async function readPicture(blob, name, limits, side, hasWholeThumbnail = false) {
  if (blob.size === 0) throw new PictureError(strings.errors.emptyFile(name))
  const type = sniff(await readHead(blob))
  if (!type) throw new PictureError(strings.errors.notPicture(name))
  const typed = blob.type === type ? blob : blob.slice(0, blob.size, type)
  const bitmap = await decode(typed, type, name)
  try {
    const isLarger = side !== null && Math.max(bitmap.width, bitmap.height) > side
    const sent = isLarger
      ? await shrink(bitmap, side, type)
      : { blob: typed, width: bitmap.width, height: bitmap.height }
    if (limits) check(sent, name, limits)
    const thumbnail = await (hasWholeThumbnail ? drawWhole : drawThumbnail)(bitmap)
    const view = URL.createObjectURL(sent.blob)
    return {
      name: isLarger ? renamed(name, sent.blob.type) : name,
      ...sent,
      view,
      thumbnail,
      lease: leaseOf([view, thumbnail]),
    }
  } finally {
    bitmap.close()
  }
}

/** @param {Blob} blob @param {string} type @param {string} name */
async function decode(blob, type, name) {
  try {
    return await createImageBitmap(blob, { imageOrientation: 'from-image' })
  } catch {
    if (type === 'image/tiff' || type === 'image/heic') throw new UndisplayableError()
    throw new PictureError(strings.errors.damaged(name))
  }
}

/**
 * @param {{blob: Blob, width: number, height: number}} picture
 * @param {string} name
 * @param {Limits} limits
 */
function check({ blob, width, height }, name, limits) {
  const { errors } = strings
  const longest = Math.max(width, height)
  const shortest = Math.min(width, height)
  checkBytes(blob, name, limits)
  if (longest > limits.max_image_side)
    throw new TooLargeError(errors.sideTooLong(name, longest, limits.max_image_side))
  if (width * height > limits.image_pixels)
    throw new TooLargeError(errors.tooManyPixels(name, width, height, limits.image_pixels))
  if (shortest < limits.min_image_side)
    throw new PictureError(errors.sideTooShort(name, shortest, limits.min_image_side))
}

/** @param {Blob} blob @param {string} name @param {Limits} limits */
export function checkBytes(blob, name, limits) {
  if (blob.size > limits.image_bytes) {
    throw new TooLargeError(strings.errors.tooManyBytes(name, blob.size, limits.image_bytes))
  }
}

/** Return a smaller copy, as a JPEG unless the format may be transparent. */
async function shrink(bitmap, side, type) {
  const scale = side / Math.max(bitmap.width, bitmap.height)
  const width = Math.max(1, Math.round(bitmap.width * scale))
  const height = Math.max(1, Math.round(bitmap.height * scale))
  const keepsPng = type === 'image/png' || type === 'image/gif'
  const blob = await draw(bitmap, width, height, keepsPng ? 'image/png' : 'image/jpeg')
  return { blob, width, height }
}

/**
 * Return the URL of a thumbnail, cut to its sides.
 * @param {ImageBitmap} bitmap
 */
export async function drawThumbnail(bitmap) {
  const { width, height } = THUMBNAIL
  return URL.createObjectURL(await draw(bitmap, width, height, 'image/jpeg'))
}

/** Return the URL of a thumbnail that shows the whole picture. */
async function drawWhole(bitmap) {
  const side = Math.min(WHOLE_SIDE, Math.max(bitmap.width, bitmap.height))
  return URL.createObjectURL((await shrink(bitmap, side, 'image/jpeg')).blob)
}

/** Return a picture that fills `width` × `height`; what sticks out is cut off. */
async function draw(source, width, height, type) {
  const canvas = document.createElement('canvas')
  Object.assign(canvas, { width, height })
  const context = canvas.getContext('2d')
  context.imageSmoothingQuality = 'high'
  const scale = Math.max(width / source.width, height / source.height)
  const [w, h] = [source.width * scale, source.height * scale]
  context.drawImage(source, (width - w) / 2, (height - h) / 2, w, h)
  return toBlob(canvas, type)
}

/** @param {HTMLCanvasElement} canvas @param {string} type @returns {Promise<Blob>} */
function toBlob(canvas, type) {
  return new Promise((resolve, reject) => {
    canvas.toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Error('no blob'))),
      type,
      JPEG_QUALITY,
    )
  })
}

/** @param {HTMLVideoElement} video @returns {Promise<Blob>} the frame that it shows */
export async function takeFrame(video) {
  const canvas = document.createElement('canvas')
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight })
  canvas.getContext('2d').drawImage(video, 0, 0)
  return toBlob(canvas, 'image/jpeg')
}

/** @param {string} name @param {string} type */
function renamed(name, type) {
  return `${name.replace(/\.[^.]*$/, '')}.${type === 'image/png' ? 'png' : 'jpg'}`
}

/** @param {Blob} blob @returns {Promise<string>} */
export function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader()
    reader.onload = () => resolve(String(reader.result))
    reader.onerror = () => reject(reader.error)
    reader.readAsDataURL(blob)
  })
}

/** @param {string} url a data URL @returns {Blob} */
export function fromDataUrl(url) {
  const comma = url.indexOf(',')
  const bytes = Uint8Array.from(atob(url.slice(comma + 1)), (char) => char.charCodeAt(0))
  return new Blob([bytes], { type: url.slice(5, url.indexOf(';')) })
}
