// The runs of a tab: those of its history, and the one that is shown.

import { useCallback, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { perform } from './run.js'
import { withPicture } from './tasks.js'

/** Return a function that renders the component again, once per frame at most. */
export function useFrames() {
  const [, setVersion] = useState(0)
  const frame = useRef(0)
  return useCallback(() => {
    frame.current ||= requestAnimationFrame(() => {
      frame.current = 0
      setVersion((version) => version + 1)
    })
  }, [])
}

/**
 * The runs of this tab, and the one that is shown, if it is about the picture. Tokens that arrive are
 * shown once per frame.
 * @param {import('./pictures.js').Picture | null} picture
 * @param {number} limit of the runs that are kept
 */
export function useRuns(picture, limit) {
  const [runs, setRuns] = useState([])
  const [selected, setRun] = useState(null)
  const aborts = useRef(new Map())
  const update = useFrames()
  const run = selected?.picture === picture ? selected : null
  const start = (next) => {
    const abort = new AbortController()
    aborts.current.set(next, abort)
    setRuns((old) => [next, ...old].slice(0, limit))
    setRun(next)
    const json = withPicture(next.request.body, next.picture)
    perform(next, json, abort.signal, update).finally(() => aborts.current.delete(next))
  }
  const stop = () => aborts.current.get(selected)?.abort()
  // Another tab may change the picture. Nobody could see or stop the run then.
  useEffect(() => {
    if (run === null) stop()
  }, [picture])
  const clear = () => setRuns((old) => old.filter((past) => past.state === 'working'))
  const select = (next) => {
    if (next === null) stop()
    setRun(next)
  }
  return { runs, run, start, stop, select, clear }
}
