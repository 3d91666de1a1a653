// Live video over a WebSocket, if WebRTC doesn't work: one JPEG file after another, each taken when
// the one before has its answer, so that none is old. docs/realtime.md describes the messages.

import { deferred, Lost } from './live_connection.js'
import { sleep } from './patience.js'
import { takeFrame } from './pictures.js'
import { asSentence, explain, getKey, root } from './server.js'
import { strings } from './strings.js'

const PATH = 'api/v1/ws'
/** Subprotocols: browsers can't send the key in a header. */
const PROTOCOL = 'raylens'
const KEY_PROTOCOL = 'raylens-key.'
const MAX_FPS = 10
const OPEN_MS = 10_000
/** Without a message, after which the server is asked for one, and after which it is away. */
const QUIET_MS = 10_000
const SILENT_MS = 30_000

/** Of RFC 6455: the server restarts. */
const RESTART = 1012
/** Codes above are 4000 plus a status of HTTP. */
const STATUS = 4000
const NO_RETRY = [400, 401, 403, 408, 415, 422]
const SETTING_ERRORS = [400, 404, 422]
const SETTINGS = 'settings.'

/** @implements {import('./live_connection.js').Connection} */
export class SocketConnection {
  kind = 'socket'
  video = null
  #socket = null
  #camera = document.createElement('video')
  #abort = new AbortController()
  #end = deferred()
  #answered = deferred()
  #resumed = deferred()
  #text = ''
  #sentAt = 0
  #isWaiting = false
  #heardAt = 0
  #sent = 0
  #bytes = { bytesUp: 0, bytesDown: 0 }
  #lastError = null
  /** What the server asks about frames: it may have refused the last question. */
  #asked = ''
  /** Whether the frame that waits for its answer was sent with an earlier question. */
  #isOutdated = false
  #values
  #request

  /** @param {import('./live_connection.js').Request} request */
  constructor(request) {
    this.#request = request
    const defaults = request.fields.map((field) => [field.name, field.default])
    this.#values = { ...Object.fromEntries(defaults), ...request.values }
    this.ended = this.#end.promise
    this.pause(request.isPaused)
    this.ended.then(() => {
      this.#answered.resolve(null)
      this.#resumed.resolve(null)
    })
  }

  /** Raises Lost. */
  async open() {
    const address = new URL(PATH, root)
    address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:'
    const key = getKey()
    const { promise, resolve } = deferred()
    try {
      this.#socket = new WebSocket(address, key ? [PROTOCOL, KEY_PROTOCOL + key] : [PROTOCOL])
    } catch {
      throw new Lost(strings.errors.unknownKey, { needsKey: true }) // no subprotocol's name
    }
    const socket = this.#socket
    socket.onopen = () => resolve(null)
    socket.onmessage = ({ data }) => this.#take(data)
    socket.onclose = ({ code }) => this.#end.resolve(this.#lossOf(code))
    const timer = setTimeout(() => socket.close(), OPEN_MS)
    const lost = await Promise.race([promise, this.ended])
    clearTimeout(timer)
    if (lost) throw lost
    this.change(this.#values)
    Object.assign(this.#camera, { srcObject: this.#request.stream, muted: true, playsInline: true })
    this.#camera.play().catch(() => {}) // it was closed
    this.#send().catch(() => this.#end.resolve(new Lost(strings.errors.unexpected)))
    this.#watch()
  }

  change(values) {
    const before = this.#question
    this.#values = { ...this.#values, ...values }
    if (this.#question !== before) this.#isOutdated = true
    if (this.#socket?.readyState === WebSocket.OPEN)
      this.#socket.send(JSON.stringify({ type: 'settings', ...this.#settings }))
  }

  pause(isPaused) {
    if (isPaused) this.#resumed = deferred()
    else this.#resumed.resolve(null)
  }

  async measure() {
    return { ...this.#bytes, frames: this.#frames, roundTripMs: 0 }
  }

  close() {
    this.#abort.abort()
    this.#end.resolve(new Lost(''))
    this.#socket?.close()
    this.#camera.srcObject = null
  }

  get #settings() {
    return settingsOf(this.#request.fields, this.#values)
  }

  get #question() {
    return questionOf(this.#settings)
  }

  /** Those that the camera has shown. */
  get #frames() {
    return this.#camera.getVideoPlaybackQuality().totalVideoFrames
  }

  /** Send the newest frame, whenever the one before has its answer. */
  async #send() {
    const { signal } = this.#abort
    let shownAt = -1
    while (!signal.aborted && this.#socket.readyState === WebSocket.OPEN) {
      await this.#resumed.promise
      const next = sleep(1000 / MAX_FPS, signal)
      if (this.#camera.currentTime !== shownAt && this.#camera.videoWidth > 0) {
        shownAt = this.#camera.currentTime
        const frame = await takeFrame(this.#camera)
        if (this.#socket.readyState !== WebSocket.OPEN) return
        this.#answered = deferred()
        this.#isWaiting = true
        this.#isOutdated = false
        this.#sentAt = performance.now()
        this.#sent += 1
        this.#bytes.bytesUp += frame.size
        this.#socket.send(frame)
        await this.#answered.promise
      }
      await next
    }
  }

  /** Notice that the server is away, also if the network doesn't say so. */
  async #watch() {
    const { signal } = this.#abort
    this.#heardAt = performance.now()
    while (!signal.aborted) {
      if (!this.#isWaiting) this.#heardAt = performance.now()
      const quiet = performance.now() - this.#heardAt
      if (quiet > SILENT_MS)
        this.#end.resolve(new Lost(strings.live.interrupted, { mayRetry: true }))
      else if (quiet >= QUIET_MS) this.#socket.send(JSON.stringify({ type: 'ping' }))
      await sleep(QUIET_MS, signal)
    }
  }

  #take(data) {
    this.#heardAt = performance.now()
    this.#bytes.bytesDown += data.length
    const message = JSON.parse(data)
    const { onMessage } = this.#request
    if (message.error) {
      this.#lastError = message
      const { error, code, status, field, frame } = message
      if (frame || SETTING_ERRORS.includes(status))
        onMessage({ type: 'error', error, code, status, field, frame_id: frame })
    } else if (message.type === 'settings') {
      this.#asked = questionOf(message.settings)
    } else if (message.frame && !message.replaced) {
      this.#text += message.response
      if (!this.#isOutdated && this.#asked === this.#question)
        onMessage(message.done ? this.#resultOf(message) : { type: 'partial', text: this.#text })
    }
    if (!message.done) return
    this.#text = ''
    if (message.frame) {
      this.#isWaiting = false
      this.#answered.resolve(null)
    }
  }

  /** Return an answer as WebRTC has it. */
  #resultOf({ frame, model, timings, objects, points }) {
    const numbered = (list) => list.map((place, index) => ({ number: index + 1, ...place }))
    const found = objects
      ? { objects: numbered(objects) }
      : points
        ? { points: numbered(points) }
        : { text: this.#text.trim() }
    const received = this.#frames
    return {
      type: 'result',
      frame_id: frame,
      feature: this.#values.feature,
      ...found,
      model,
      timings: { ...timings, age_ms: performance.now() - this.#sentAt },
      frames: { received, processed: this.#sent, dropped: Math.max(0, received - this.#sent) },
    }
  }

  /** @param {number} code with which the connection was closed */
  #lossOf(code) {
    const { live } = strings
    const status = code - STATUS
    const sentence = this.#lastError && asSentence(this.#lastError.error)
    const retryAfter = this.#lastError?.retry_after
    if (code === RESTART) return new Lost(live.restarts, { mayRetry: true, retryAfter })
    if (status === 401 || status === 403)
      return new Lost(explain(status, this.#lastError?.error ?? ''), { needsKey: true })
    if (status === 408) return new Lost(live.idle)
    const mayRetry = !NO_RETRY.includes(status)
    return new Lost(status > 0 && sentence ? sentence : live.interrupted, { mayRetry, retryAfter })
  }
}

const questionOf = ({ task, prompt }) => `${task} ${prompt}`

/**
 * Return the settings of a WebSocket for those of a pipeline, by the hints of its schema.
 * @param {import('./form.js').Field[]} fields
 * @param {Record<string, any>} values all of them
 */
export function settingsOf(fields, values) {
  const { feature } = values
  const settings = { task: feature, prompt: '', model: values.model || null, sampling: {} }
  for (const { name, hints } of fields) {
    const { request, features } = hints
    if (!request || (features && !features.includes(feature))) continue
    if (request === 'question' || request === 'object') settings.prompt = values[name]
    else if (request.startsWith(SETTINGS))
      settings.sampling[request.slice(SETTINGS.length)] = values[name]
    else settings[request] = values[name]
  }
  return settings
}
