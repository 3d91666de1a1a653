// Figures of live video: how many answers come, how old they are, and what passes through.

import { sleep } from './patience.js'

const MAX_DELAYS = 60
const RATE_MS = 5000
const MEASURE_MS = 1000

/** Each is null until it is known. */
export class LiveFigures {
  /** The camera's frames, and answers, a second. */
  fps = null
  perSecond = null
  /** Milliseconds from a frame to its result: of the last one, and of the last ones. */
  delayMs = null
  /** @type {number[]} */
  delays = []
  dropped = null
  /** Bits a second. */
  bitsUp = null
  bitsDown = null
  /** The model that answered last. */
  model = null
  #measuredFps = null
  #resultTimes = []
  #roundTripMs = 0

  /** @param {any} result the newest */
  add({ timings, frames, model, video_metadata: video }) {
    const now = performance.now()
    this.delayMs = timings.age_ms + this.#roundTripMs
    this.delays = [...this.delays, this.delayMs].slice(-MAX_DELAYS)
    this.#resultTimes = [...this.#resultTimes, now].filter((time) => now - time <= RATE_MS)
    this.perSecond = perSecond(this.#resultTimes)
    this.dropped = frames.dropped
    this.model = model
    this.#measuredFps = video?.measured_fps ?? null
  }

  /**
   * Measure what passes through a connection, until it ends.
   * @param {import('./live_connection.js').Connection} connection
   * @param {() => void} onChange
   */
  async measure(connection, onChange) {
    const abort = new AbortController()
    connection.ended.then(() => abort.abort())
    let last = null
    while (!abort.signal.aborted) {
      const at = performance.now()
      const traffic = await connection.measure().catch(() => null)
      if (traffic && last) {
        const rate = (name) => (1000 * (traffic[name] - last[name])) / (at - last.at)
        this.#roundTripMs = traffic.roundTripMs
        this.fps = this.#measuredFps ?? rate('frames')
        this.bitsUp = 8 * rate('bytesUp')
        this.bitsDown = 8 * rate('bytesDown')
        onChange()
      }
      last = traffic && { ...traffic, at }
      await sleep(MEASURE_MS, abort.signal)
    }
  }
}

/** Return results a second, of their times in milliseconds. */
function perSecond(times) {
  if (times.length < 2) return null
  return (1000 * (times.length - 1)) / (times[times.length - 1] - times[0])
}
