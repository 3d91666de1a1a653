// A question that the server is asked again and again.

import { useEffect, useState } from './vendor/htm-preact.js'
import { ask, ServerError } from './server.js'
import { strings } from './strings.js'

/** After which a server that says nothing counts as away. */
const ANSWER_MS = 20_000
/** From a failure to the next question, at most: a page goes on soon after the server is back. */
const FAILED_PAUSE_MS = 3000

/**
 * The newest answer and its time, asked for while the page is visible. The answer stays if a later
 * question fails.
 * @param {string} path
 * @param {number} pauseMs from one answer to the next question
 * @param {number} version asks at once if it changes
 * @returns {{answer: any, time: Date | null, error: Error | null}}
 */
export function usePolling(path, pauseMs, version = 0) {
  const [known, setKnown] = useState({ answer: null, time: null, error: null })
  useEffect(() => {
    let timer = 0
    let abort = new AbortController()
    const stop = () => {
      clearTimeout(timer)
      abort.abort()
    }
    const poll = async () => {
      stop()
      abort = new AbortController()
      const { signal } = abort
      const next = await askInTime(path, abort).then(
        (answer) => ({ answer, time: new Date(), error: null }),
        (error) => ({ error }),
      )
      if (signal.reason?.name === 'AbortError') return
      setKnown((old) => ({ ...old, ...next }))
      const pause = next.error ? Math.min(pauseMs, FAILED_PAUSE_MS) : pauseMs
      if (!document.hidden) timer = setTimeout(poll, pause)
    }
    const onVisible = () => (document.hidden ? stop() : poll())
    document.addEventListener('visibilitychange', onVisible)
    poll()
    return () => {
      stop()
      document.removeEventListener('visibilitychange', onVisible)
    }
  }, [path, version])
  return known
}

/** Return an answer. Raises ServerError, also if there is none in time. */
async function askInTime(path, abort) {
  const late = new ServerError(strings.errors.network)
  const timer = setTimeout(() => abort.abort(late), ANSWER_MS)
  try {
    return await ask(path, { signal: abort.signal })
  } finally {
    clearTimeout(timer)
  }
}
