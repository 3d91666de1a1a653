// Pictures and videos of a message, and whether the server and a model take them.

import { asPictureError, readAny, readExample } from './picture_files.js'
import { PictureError, readHead, sniff, toDataUrl } from './pictures.js'
import { strings } from './strings.js'
import { inBase64, readVideo, sniffVideo } from './videos.js'

/**
 * A picture or a video of a message.
 * @typedef {object} Attachment
 * @property {number} id
 * @property {'picture' | 'video'} kind
 * @property {string} name
 * @property {Blob} blob
 * @property {string} view the URL of what the page shows
 * @property {string} thumbnail its URL; empty if the browser can't show the file
 * @property {object} lease of its URLs
 * @property {string} [address] the web address from which the server takes it
 * @property {string} [example] the name of a bundled example
 * @property {number} [width]
 * @property {number} [height]
 * @property {number} [seconds]
 */

let count = 0

/** @param {import('./pictures.js').Picture} picture @returns {Attachment} */
export const fromPicture = (picture) => ({ ...picture, id: ++count, kind: 'picture' })

/**
 * Return a file as an attachment. Raises an error whose message is a sentence.
 * @param {File} file
 * @param {any} limits the server's; null if they are not known
 * @returns {Promise<Attachment>}
 */
export async function readAttachment(file, limits) {
  const { errors, picture } = strings
  const name = file.name || picture.pasted
  try {
    const head = await readHead(file)
    if (sniff(head)) return fromPicture(await readAny(file, name, limits, null))
    const type = sniffVideo(head)
    if (type) return { ...(await readVideo(file, name, type, limits)), id: ++count, kind: 'video' }
    throw new PictureError(file.size === 0 ? errors.emptyFile(name) : errors.notMedia(name))
  } catch (error) {
    throw asPictureError(error)
  }
}

/** @param {string} file the name of a bundled example @param {any} limits */
export async function readExampleAttachment(file, limits) {
  try {
    return fromPicture(await readExample(file, limits, null))
  } catch (error) {
    throw asPictureError(error)
  }
}

/** @param {Attachment} attachment */
export async function urlOf({ address, blob }) {
  return address ?? (await toDataUrl(blob))
}

/**
 * Return why a request with these attachments and this much text would be refused; empty if it
 * would not.
 * @param {Attachment[]} attachments all those of the conversation
 * @param {number} chars of all its texts
 * @param {any} limits the server's; null if they are not known
 * @param {string} model
 * @param {any} info what /health tells of the model; undefined without it
 */
export function refusal(attachments, chars, limits, model, info) {
  const { chat } = strings
  const videos = attachments.filter(({ kind }) => kind === 'video').length
  const pictures = attachments.length - videos
  const most = info?.max_pictures ?? null
  // Frames count as pictures, if the model reads no videos.
  const seen = pictures + videos * (info?.frames_as_pictures ?? 0)
  if (most !== null && seen > most) return chat.tooManyForModel(model, attachments.length, most)
  if (!limits) return ''
  if (pictures > limits.images) return chat.tooManyPictures(pictures, limits.images)
  if (videos > limits.videos) return chat.tooManyVideos(videos, limits.videos)
  if (chars > limits.text_chars) return chat.tooMuchText(chars, limits.text_chars)
  const sent = attachments.filter(({ address }) => !address)
  const bytes = sent.reduce((sum, { blob }) => sum + blob.size, 0)
  const room = inBase64(limits.body_bytes - chars)
  return bytes > room ? chat.tooManyBytes(bytes, room) : ''
}
