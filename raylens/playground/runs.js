// The runs of a tab: those of its history, and the one that is shown.

import { useCallback, useRef, useState } from './vendor/htm-preact.js'
import { perform } from './run.js'

const MAX_RUNS = 30

/** The runs of this tab, and the one that is shown. Tokens that arrive are shown once per frame. */
export function useRuns() {
  const [runs, setRuns] = useState([])
  const [run, setRun] = useState(null)
  const [, setVersion] = useState(0)
  const aborts = useRef(new Map())
  const frame = useRef(0)
  const update = useCallback(() => {
    frame.current ||= requestAnimationFrame(() => {
      frame.current = 0
      setVersion((version) => version + 1)
    })
  }, [])
  const start = (next) => {
    const abort = new AbortController()
    aborts.current.set(next, abort)
    setRuns((old) => [next, ...old].slice(0, MAX_RUNS))
    setRun(next)
    perform(next, abort.signal, update).finally(() => aborts.current.delete(next))
  }
  const stop = () => aborts.current.get(run)?.abort()
  const clear = () => setRuns((old) => old.filter((past) => past.state === 'working'))
  const select = (next) => {
    if (next === null) stop()
    setRun(next)
  }
  return { runs, run, start, stop, select, clear }
}
