// Trouble that passes by itself: which it is, and how long to wait before a request is sent again.

import { ServerError } from './server.js'

/** Statuses of no answer, and of a proxy that gets none. */
const AWAY = [0, 502]
const MAYBE_LATER = [0, 408, 429, 502, 503, 504, 507]
const FIRST_PAUSE_MS = 1000
const LONGEST_PAUSE_MS = 15_000

/** @param {Error} error whether the same request may succeed later; status 0 is no answer */
export function mayPass(error) {
  return error instanceof ServerError && MAYBE_LATER.includes(error.status)
}

/** @param {Error} error whether the server was not there */
export function isAway(error) {
  return error instanceof ServerError && AWAY.includes(error.status)
}

/**
 * Return the milliseconds to wait: what the server says, or longer after each failure in a row,
 * with jitter.
 * @param {Error} error
 * @param {number} failures in a row, this one included
 */
export function pauseAfter(error, failures) {
  const usual = Math.min(FIRST_PAUSE_MS * 2 ** (failures - 1), LONGEST_PAUSE_MS)
  return 1000 * (error.retryAfter ?? 0) + usual * (0.5 + Math.random() / 2)
}

/**
 * Return after some time, or once `signal` fires, or once the browser is online again.
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', done)
      window.removeEventListener('online', done)
      resolve()
    }
    const timer = setTimeout(done, ms)
    signal.addEventListener('abort', done)
    window.addEventListener('online', done)
    if (signal.aborted) done()
  })
}

/**
 * Return what `work` returns. Trouble that passes is waited out.
 * @template T
 * @param {() => Promise<T>} work it may be done twice
 * @param {AbortSignal} signal
 * @param {(error: Error) => void} onTrouble called before each wait
 * @param {(error: Error) => boolean} passes
 * @returns {Promise<T>}
 */
export async function patiently(work, signal, onTrouble = () => {}, passes = mayPass) {
  for (let failures = 1; ; failures++) {
    try {
      return await work()
    } catch (error) {
      if (signal.aborted || !passes(error)) throw error
      onTrouble(error)
      await sleep(pauseAfter(error, failures), signal)
    }
  }
}

/**
 * Do `work` for each item, `limit` of them at a time.
 * @template T
 * @param {T[]} items
 * @param {number} limit
 * @param {(item: T) => Promise<void>} work
 */
export async function forEachOf(items, limit, work) {
  const rest = items.values()
  const worker = async () => {
    for (const item of rest) await work(item)
  }
  await Promise.all(Array.from({ length: limit }, worker))
}
