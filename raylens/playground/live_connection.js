// What the two connections of live video have in common, and why one ends.

import { SourceError } from './live_source.js'
import { ServerError } from './server.js'
import { strings } from './strings.js'

/**
 * The end of a connection. Its message is a sentence for the user.
 */
export class Lost extends Error {
  /**
   * @param {string} message
   * @param {{mayRetry?: boolean, retryAfter?: number, needsKey?: boolean}} options
   */
  constructor(message, { mayRetry = false, retryAfter = 0, needsKey = false } = {}) {
    super(message)
    this.mayRetry = mayRetry
    this.retryAfter = retryAfter
    this.needsKey = needsKey
  }
}

/**
 * A connection that is open.
 * @typedef {object} Connection
 * @property {'webrtc' | 'socket'} kind
 * @property {MediaStream | null} video annotated by the server
 * @property {Promise<Lost>} ended
 * @property {(values: Record<string, any>) => void} change
 * @property {(isPaused: boolean) => void} pause
 * @property {() => Promise<Traffic>} measure
 * @property {() => void} close also while it opens, or while the page is left
 */

/**
 * Bytes and the camera's frames so far, and the time to the server and back in milliseconds.
 * @typedef {{bytesUp: number, bytesDown: number, frames: number, roundTripMs: number}} Traffic
 */

/**
 * @typedef {object} Request
 * @property {MediaStream} stream
 * @property {string} pipelineId
 * @property {import('./form.js').Field[]} fields those of the pipeline
 * @property {Record<string, any>} values its settings that were changed
 * @property {boolean} isPaused
 * @property {(message: any) => void} onMessage gets results, events and errors
 */

/** @param {any} error whether another attempt may help */
export function mayRetry(error) {
  if (error instanceof Lost) return error.mayRetry
  if (!(error instanceof ServerError)) return false
  return [0, 404, 429].includes(error.status) || error.status >= 500
}

/** Return an error whose message is a sentence. @param {Error} error */
export function asShown(error) {
  const isSentence = [Lost, ServerError, SourceError].some((kind) => error instanceof kind)
  return isSentence ? error : new Lost(strings.errors.unexpected)
}

/** @returns {{promise: Promise<any>, resolve: (value: any) => void}} */
export function deferred() {
  let resolve
  const promise = new Promise((given) => {
    resolve = given
  })
  return { promise, resolve }
}
