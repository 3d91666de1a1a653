// A session of live video: it opens its connection, opens another one if that breaks off, and keeps
// what has come.

import { asShown, Lost, mayRetry } from './live_connection.js'
import { LiveFigures } from './live_figures.js'
import { featureOf, promptOf } from './live_settings.js'
import { SocketConnection } from './live_socket.js'
import { WebRtcConnection, WebRtcUnavailable } from './live_webrtc.js'
import { sleep } from './patience.js'
import { strings } from './strings.js'

const MAX_ANSWERS = 50
const MAX_EVENTS = 200
/** Messages that can be saved. */
const MAX_LOG = 20_000
const BACKOFF_S = [1, 2, 4, 8, 15]
/** A connection that lasts for so long counts as one that works. */
const STEADY_MS = 10_000

/**
 * @typedef {object} Start
 * @property {() => Promise<import('./live_source.js').Source>} openSource
 * @property {any} pipeline as the server describes it
 * @property {import('./form.js').Field[]} fields
 * @property {Record<string, any>} values settings that were changed
 */

/** The state is that of its fields, which change in place. */
export class LiveSession {
  /** @type {'connecting' | 'live' | 'waiting' | 'ended'} */
  state = 'connecting'
  isPaused = false
  /** @type {import('./live_connection.js').Connection['kind'] | null} */
  kind = null
  /** Why it goes over a WebSocket. */
  fallback = ''
  /** @type {Error | null} why it has ended, or waits */
  error = null
  /** When it tries again, as of Date.now(). */
  retryAt = 0
  /** @type {any} an error about a frame, until one has none, or about a setting */
  problem = null
  /** @type {MediaStream | null} */
  local = null
  /** @type {MediaStream | null} */
  annotated = null
  partial = ''
  /** @type {any} the newest answer to what is asked now */
  result = null
  /** @type {{at: Date, text: string, times: number}[]} the newest first */
  answers = []
  /** @type {{at: Date, event: any}[]} the newest first */
  events = []
  figures = new LiveFigures()
  /** @type {any[]} what has come, to be saved */
  log = []
  #start
  #onChange
  #abort = new AbortController()
  #wake = new AbortController()
  #source = null
  #connection = null
  #values
  #lacksWebRtc = false
  /** As of performance.now(); infinite until it is live. */
  #liveSince = Number.POSITIVE_INFINITY

  /**
   * @param {Start} start
   * @param {() => void} onChange
   */
  constructor(start, onChange) {
    this.#start = start
    this.#values = start.values
    this.#onChange = onChange
    this.#run()
  }

  get isOpen() {
    return this.state !== 'ended'
  }

  /** What is looked for, or asked. */
  get subject() {
    return promptOf(this.#start.fields, this.#values)
  }

  get #question() {
    return `${featureOf(this.#start.fields, this.#values)} ${this.subject}`
  }

  /** Change settings. @param {Record<string, any>} values those that are new */
  change(values) {
    if (!this.isOpen) return
    const asked = this.#question
    this.#values = { ...this.#values, ...values }
    if (this.#question !== asked) {
      this.result = null
      this.partial = ''
    }
    // An error about a frame lasts until a frame has none.
    if (this.problem?.frame_id === undefined) this.problem = null
    this.#connection?.change(values)
    this.#onChange()
  }

  /** @param {boolean} isPaused */
  pause(isPaused) {
    this.isPaused = isPaused
    this.#connection?.pause(isPaused)
    this.#onChange()
  }

  /** End the wait for another attempt. */
  retryNow() {
    this.#wake.abort()
  }

  /** End it. Also while the page is left. */
  stop() {
    this.#finish(null)
  }

  async #run() {
    const { signal } = this.#abort
    try {
      await this.#openSource()
      for (let attempt = 0; !signal.aborted; attempt += 1) {
        const lost = await this.#connect()
        if (signal.aborted) return
        if (performance.now() - this.#liveSince > STEADY_MS) attempt = 0
        if (!mayRetry(lost)) throw lost
        await this.#waitToRetry(lost, attempt)
      }
    } catch (error) {
      if (!signal.aborted) this.#finish(asShown(error))
    }
  }

  async #openSource() {
    const source = await this.#start.openSource()
    if (this.#abort.signal.aborted) return source.stop()
    this.#source = source
    this.local = source.stream
    source.broken.then((error) => this.#finish(error))
    this.#onChange()
    return undefined
  }

  /** Connect, and return why the connection has ended, or why there is none. */
  async #connect() {
    this.state = 'connecting'
    this.#liveSince = Number.POSITIVE_INFINITY
    this.#onChange()
    try {
      const connection = await this.#open()
      if (this.#abort.signal.aborted) return null
      this.state = 'live'
      this.#liveSince = performance.now()
      this.kind = connection.kind
      this.annotated = connection.video
      this.error = null
      this.problem = null
      this.figures.measure(connection, this.#onChange)
      this.#onChange()
      return await connection.ended
    } catch (error) {
      return error
    } finally {
      this.#connection?.close()
      this.#connection = null
      this.annotated = null
      this.partial = ''
    }
  }

  /** Return a connection over WebRTC, or else over a WebSocket. */
  async #open() {
    if (!this.#lacksWebRtc) {
      try {
        const connection = await this.#use(WebRtcConnection)
        this.fallback = ''
        return connection
      } catch (error) {
        if (!(error instanceof WebRtcUnavailable) || this.#abort.signal.aborted) throw error
        this.#lacksWebRtc = error.isLasting
        this.fallback = error.message
        this.#connection.close()
      }
    }
    if (!this.#start.fields.some(({ hints }) => hints.request))
      throw new Lost(strings.live.needsWebRtc(this.#start.pipeline.name, this.fallback))
    return this.#use(SocketConnection)
  }

  async #use(Connection) {
    this.#connection = new Connection({
      stream: this.local,
      pipelineId: this.#start.pipeline.id,
      fields: this.#start.fields,
      values: this.#values,
      isPaused: this.isPaused,
      onMessage: (message) => this.#take(message),
    })
    await this.#connection.open()
    return this.#connection
  }

  async #waitToRetry(lost, attempt) {
    const seconds = Math.max(
      lost.retryAfter ?? 0,
      BACKOFF_S[Math.min(attempt, BACKOFF_S.length - 1)],
    )
    this.state = 'waiting'
    this.error = lost
    this.retryAt = Date.now() + 1000 * seconds
    this.#wake = new AbortController()
    this.#onChange()
    await sleep(1000 * seconds, this.#wake.signal)
  }

  /** @param {Error | null} error null if the user ends it */
  #finish(error) {
    if (this.#abort.signal.aborted) return
    this.#abort.abort()
    this.#wake.abort()
    this.#connection?.close()
    this.#source?.stop()
    this.state = 'ended'
    this.local = null
    this.error = error
    this.partial = ''
    this.#onChange()
  }

  #take(message) {
    if (message.type === 'partial') this.partial = message.text
    else this.#keep(message)
    if (message.type === 'result') this.#takeResult(message)
    if (message.type === 'recovered') this.#endProblem()
    if (message.type === 'error') this.problem = message
    if (message.type === 'event')
      this.events = [{ at: new Date(), event: message.event }, ...this.events].slice(0, MAX_EVENTS)
    this.#onChange()
  }

  /** Forget an error about a frame, once there is a later frame without one. */
  #endProblem() {
    if (this.problem?.frame_id !== undefined) this.problem = null
  }

  #keep(message) {
    this.log.push({ at: new Date().toISOString(), ...message })
    if (this.log.length > MAX_LOG) this.log.splice(0, MAX_LOG / 10)
  }

  #takeResult(result) {
    this.result = result
    this.partial = ''
    this.#endProblem()
    this.figures.add(result)
    if (result.text === undefined) return
    const { text } = result
    const [last] = this.answers
    if (last?.text === text) last.times += 1
    else this.answers = [{ at: new Date(), text, times: 1 }, ...this.answers].slice(0, MAX_ANSWERS)
  }
}
