// The time, for what shows how long something takes.

import { useEffect, useState } from './vendor/htm-preact.js'

const SECOND_MS = 1000

/** Return the time as of Date.now(), and render the component again each second. */
export function useNow() {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), SECOND_MS)
    return () => clearInterval(timer)
  }, [])
  return now
}
