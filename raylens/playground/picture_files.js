// Pictures from files, web addresses and the bundled examples, with errors as sentences.

import {
  checkBytes,
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
    if (limits) checkBytes(blob, name, limits)
    const shown = await decodeOnServer(await toDataUrl(blob), name, limits)
    return side === null ? { ...shown, blob } : readPicture(shown.blob, name, limits, side)
  }
}

/**
 * Return a picture that the server downloads.
 * @param {string} text
 * @param {Limits | null} limits
 * @returns {Promise<Picture>}
 */
export async function readAddress(text, limits) {
  const address = text.trim()
  if (!/^https?:\/\/\S+$/i.test(address)) throw new PictureError(strings.errors.notUrl)
  const name = address.split(/[?#]/)[0].split('/').pop() || new URL(address).host
  return { ...(await decodeOnServer(address, name, limits)), address }
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

async function decodeOnServer(url, name, limits) {
  const { image_url: upright } = await ask('v1/preprocess', {
    json: { image_url: url, recipe: 'plain' },
  })
  return readPicture(fromDataUrl(upright), name, limits, null)
}
