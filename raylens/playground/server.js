// What the page asks the server, with the key, and its errors as sentences that say what to do.

import { Kept } from './storage.js'
import { readEvents } from './streams.js'
import { strings } from './strings.js'

/** The application's root, also below a prefix. Ends with a slash. */
export const root = new URL('..', import.meta.url).href

const keptKey = new Kept('sessionStorage', 'raylens.key')
const RETRY_S = 5
/** Statuses of a server that may answer a moment later. */
const PASSING = [429, 503]
const INVALID = [400, 404, 422]

/** A request that got no answer, or an error. Its message is a sentence for the user. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} status 0 without an answer
   * @param {any} answer the error as the server sent it
   * @param {number | null} retryAfter seconds
   * @param {string} reason the message without advice to try again, for whoever does so anyway
   */
  constructor(message, status = 0, answer = null, retryAfter = null, reason = message) {
    super(message)
    this.status = status
    this.answer = answer
    this.retryAfter = retryAfter
    this.reason = message === strings.errors.network ? strings.errors.away : reason
  }

  /** Whether another key may help. */
  get needsKey() {
    return this.status === 401 || isForbidden(this.status, detailOf(this.answer))
  }
}

/** @returns {string} the key of this tab; empty without one */
export function getKey() {
  return keptKey.get()
}

/** @param {string} key empty forgets it */
export function setKey(key) {
  keptKey.set(key)
}

/**
 * @typedef {object} Options
 * @property {any} [json] makes it a POST, unless there is a method
 * @property {string} [method]
 * @property {AbortSignal} [signal]
 * @property {Record<string, string>} [headers]
 * @property {boolean} [keepalive] whether it goes on if the page is left
 * @property {string} [key] that of this tab by default
 */

/**
 * Return the response to a request. Raises ServerError, and an AbortError if `signal` fires.
 * @param {string} path such as "v1/caption"
 * @param {Options} options
 */
export async function send(path, options = {}) {
  const { json, method, signal, keepalive, headers = {}, key = getKey() } = options
  const request = {
    method: method ?? (json === undefined ? 'GET' : 'POST'),
    signal,
    keepalive,
    headers: { Accept: 'application/json, text/event-stream', ...headers },
  }
  if (key) request.headers.Authorization = `Bearer ${key}`
  if (json !== undefined) {
    request.headers['Content-Type'] = 'application/json'
    request.body = JSON.stringify(json)
  }
  let response
  try {
    response = await fetch(new URL(path, root), request)
  } catch (error) {
    throw asServerError(error, strings.errors.network)
  }
  if (!response.ok) throw await readError(response)
  return response
}

/**
 * Return the answer to a request as JSON.
 * @param {string} path
 * @param {Options} options
 */
export async function ask(path, options) {
  const response = await send(path, options)
  try {
    return await response.json()
  } catch (error) {
    throw asServerError(error, strings.errors.unreadable)
  }
}

/**
 * Yield the JSON of each event of a response. Raises ServerError if the stream breaks off, or if
 * an event is an error.
 * @param {Response} response
 */
export async function* eventsOf(response) {
  try {
    for await (const { data } of readEvents(response.body)) {
      if (data === '[DONE]') return
      const value = JSON.parse(data)
      const detail = detailOf(value)
      if (detail) throw new ServerError(explain(500, detail), 500, value)
      yield value
    }
  } catch (error) {
    throw asServerError(error, strings.errors.interrupted)
  }
}

/** @param {any} error @param {string} message */
export function asServerError(error, message) {
  return error instanceof ServerError || error.name === 'AbortError'
    ? error
    : new ServerError(message)
}

/** @param {Response} response */
async function readError(response) {
  const text = await response.text().catch(() => '')
  let answer = text
  try {
    answer = JSON.parse(text)
  } catch {
    // A proxy's own error is no JSON.
  }
  const detail = detailOf(answer) ?? (typeof answer === 'string' ? answer.slice(0, 300) : '')
  const retryAfter = Number(response.headers.get('Retry-After')) || null
  const reason = explain(response.status, detail)
  const message = PASSING.includes(response.status)
    ? strings.errors.retryIn(reason, retryAfter ?? RETRY_S)
    : reason
  return new ServerError(message, response.status, answer, retryAfter, reason)
}

/** Return the message of an error in the shape of any dialect; undefined if it is none. */
function detailOf(answer) {
  if (typeof answer !== 'object' || answer === null) return undefined
  if (typeof answer.error === 'string') return answer.error
  return answer.error?.message ?? answer.detail
}

/**
 * Return the field of a job's input that an error is about, and what is wrong with it; null if it is
 * about none.
 * @param {any} error
 */
export function refusedField({ status, answer }) {
  if (!INVALID.includes(status)) return null
  const [, field, reason] = /^input\.(\w+)[^:]*: (.*)/s.exec(detailOf(answer)) ?? []
  return field ? { field, reason: asSentence(reason) } : null
}

/** Whether it is for want of another key: pages of other origins are refused with any. */
function isForbidden(status, detail) {
  return status === 403 && !String(detail).startsWith('Origin:')
}

/**
 * Return an error as a sentence that says what to do.
 * @param {number} status
 * @param {string} detail the server's message
 */
export function explain(status, detail) {
  const { errors } = strings
  const sentence = asSentence(detail)
  if (status === 401) return getKey() ? errors.unknownKey : errors.missingKey
  if (isForbidden(status, detail)) return errors.forbidden(sentence)
  if (status === 413) return errors.tooLarge(sentence)
  if (status === 429) return errors.limit(sentence)
  if (status === 503) return errors.unavailable(sentence)
  if (status === 504) return errors.timeout
  if (status === 507) return errors.full(sentence)
  if (status >= 500) return errors.failed(sentence)
  return errors.refused(sentence)
}

/**
 * Return a message of the server, such as "denoise: skipped", as a sentence.
 * @param {string} text
 */
export function asSentence(text) {
  const trimmed = text.trim()
  if (!trimmed) return ''
  const begun = trimmed[0].toUpperCase() + trimmed.slice(1)
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`
}
