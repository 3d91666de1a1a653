// Pictures from files, web addresses and the bundled examples, with errors as sentences.

import {
  fromDataUrl,
  PictureError,
  readPicture,
  toDataUrl,
  UndisplayableError,
} from './pictures.js'
import { ask, root, ServerError } from './server.js'
import { strings } from './strings.js'

/** @typedef {import('./pictures.js').Picture} Picture */
/** @typedef {import('./pictures.js').Limits} Limits */

/** Of requests, and what their errors call it. */
const FIELD = 'image_url'

export const EXAMPLES = [
  { id: 'scene', file: 'scene.png' },
  { id: 'cat', file: 'cat.jpg' },
  { id: 'coffee', file: 'coffee.jpg' },
]

/** @param {Error} error @returns {Error} one whose message is a sentence for the user */
export function asPictureError(error) {
  if (error instanceof PictureError || error instanceof ServerError) return error
  const { network, unexpected } = strings.errors
  return new PictureError(error instanceof TypeError ? network : unexpected)
}

/**
 * Return a picture, also one that only the server can decode. Raises as `readPicture` does, and
 * ServerError.
 * @param {Blob} blob
 * @param {string} name
 * @param {Limits | null} limits
 * @param {number | null} side
 * @returns {Promise<Picture>}
 */
export async function readAny(blob, name, limits, side) {
  try {
    return await readPicture(blob, name, limits, side)
  } catch (error) {
    if (!(error instanceof UndisplayableError)) throw error
    const { convertFirst, notConverted, tooManyBytes } = strings.errors
    if (limits && blob.size > limits.image_bytes)
      throw new PictureError(convertFirst(tooManyBytes(name, blob.size, limits.image_bytes)))
    const url = await toDataUrl(blob)
    const shown = await decodeOnServer(url, name, (reason) => notConverted(name, reason))
    return side === null ? { ...shown, blob } : readPicture(shown.blob, name, limits, side)
  }
}

/**
 * Return a picture that the server downloads. Raises PictureError and ServerError.
 * @param {string} text
 * @returns {Promise<Picture>}
 */
export async function readAddress(text) {
  const { notUrl, notDownloaded } = strings.errors
  const address = text.trim()
  if (!/^https?:\/\/\S+$/i.test(address)) throw new PictureError(notUrl)
  const name = address.split(/[?#]/)[0].split('/').pop() || new URL(address).host
  return { ...(await decodeOnServer(address, name, notDownloaded)), address }
}

/**
 * Return a bundled example.
 * @param {string} file its name
 * @param {Limits | null} limits
 * @param {number | null} side
 * @returns {Promise<Picture>}
 */
export async function readExample(file, limits, side) {
  const response = await fetch(`${root}playground/examples/${file}`)
  const read = await readPicture(await response.blob(), file, limits, side)
  return read.name === file && side === null ? { ...read, example: file } : read
}

/**
 * Return a picture as the server decodes it, to be shown: it is not what is sent later.
 * @param {string} url
 * @param {string} name
 * @param {(reason: string) => string} explain returns the sentence for a picture that is refused
 */
async function decodeOnServer(url, name, explain) {
  const json = { [FIELD]: url, recipe: 'plain' }
  const answer = await ask('v1/preprocess', { json }).catch((error) => {
    const reason = error.answer?.detail
    if (typeof reason !== 'string' || !reason.includes(FIELD)) throw error
    throw new PictureError(explain(reason.replace(`${FIELD}: `, '').replace(FIELD, 'it')))
  })
  return readPicture(fromDataUrl(answer[FIELD]), name, null, null)
}
