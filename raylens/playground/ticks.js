// A timer that goes on in a hidden tab.

/**
 * Call a function again and again, until the returned function is called.
 * @param {number} ms
 * @param {() => void} callback
 * @returns {() => void}
 */
export function every(ms, callback) {
  const worker = new Worker(new URL('ticks_worker.js', import.meta.url))
  worker.onmessage = callback
  worker.postMessage(ms)
  return () => worker.terminate()
}
