// The runs of a tab: those of its history, and the one that is shown.

import { useCallback, useRef, useState } from './vendor/htm-preact.js'
import { perform } from './run.js'
import { withPicture } from './tasks.js'

const MAX_RUNS = 30

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

/** The runs of this tab, and the one that is shown. Tokens that arrive are shown once per frame. */
export function useRuns() {
  const [runs, setRuns] = useState([])
  const [run, setRun] = useState(null)
  const aborts = useRef(new Map())
  const update = useFrames()
  const start = (next) => {
    const abort = new AbortController()
    aborts.current.set(next, abort)
    setRuns((old) => [next, ...old].slice(0, MAX_RUNS))
    setRun(next)
    const json = withPicture(next.request.body, next.picture)
    perform(next, json, abort.signal, update).finally(() => aborts.current.delete(next))
  }
  const stop = () => aborts.current.get(run)?.abort()
  const clear = () => setRuns((old) => old.filter((past) => past.state === 'working'))
  const select = (next) => {
    if (next === null) stop()
    setRun(next)
  }
  return { runs, run, start, stop, select, clear }
}
