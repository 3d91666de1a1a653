// Live video over WebRTC: the camera's frames to the server, annotated video and results back.
// docs/realtime.md describes the routes and messages.

import { deferred, Lost } from './live_connection.js'
import { ask, asSentence, getKey, send, ServerError } from './server.js'
import { strings } from './strings.js'

const ICE_SERVERS = 'api/v1/webrtc/ice-servers'
const OFFER = 'api/v1/webrtc/offer'
const CHANNEL = 'parameters'
const CONNECT_MS = 12_000
/** How long a connection may be interrupted. */
const INTERRUPTED_MS = 5000

/** WebRTC doesn't work with this server, network or browser. Its message is a sentence. */
export class WebRtcUnavailable extends Error {
  /** @param {string} message @param {boolean} isLasting whether another attempt is in vain */
  constructor(message, isLasting) {
    super(message)
    this.isLasting = isLasting
  }
}

/** @implements {import('./live_connection.js').Connection} */
export class WebRtcConnection {
  kind = 'webrtc'
  video = null
  #peer = null
  #channel = null
  #sessionId = ''
  #isClosed = false
  #candidates = []
  #farewell = Promise.resolve()
  #end = deferred()
  #interrupted = 0
  /** Settings that were changed before the channel was open. */
  #unsent = {}
  #request
  /** Of the whole session: the server lets nobody else change or end it. */
  #key = getKey()

  /** @param {import('./live_connection.js').Request} request */
  constructor(request) {
    this.#request = request
    this.ended = this.#end.promise
  }

  /** Raises ServerError, WebRtcUnavailable and Lost. */
  async open() {
    const { stream, pipelineId, values, isPaused } = this.#request
    if (!window.RTCPeerConnection) throw new WebRtcUnavailable(strings.live.noWebRtc, true)
    const peer = new RTCPeerConnection(await askIceServers(this.#key))
    this.#peer = peer
    this.#channel = peer.createDataChannel(CHANNEL)
    this.#channel.onmessage = ({ data }) => this.#take(JSON.parse(data))
    for (const track of stream.getVideoTracks()) peer.addTrack(track, stream)
    peer.ontrack = ({ track }) => {
      this.video = new MediaStream([track])
    }
    peer.onicecandidate = ({ candidate }) => this.#trickle(candidate)
    await peer.setLocalDescription()
    const { sdp, type } = peer.localDescription
    const initialParameters = { ...values, pipeline_ids: [pipelineId], paused: isPaused }
    const json = { sdp, type, initialParameters }
    // Not aborted if the user stops meanwhile: the session's id is needed to end it.
    const answer = await ask(OFFER, { json, key: this.#key }).catch(asUnavailable)
    this.#sessionId = answer.sessionId
    if (this.#isClosed) return this.close()
    await peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type })
    this.#trickle()
    await this.#connected()
    this.change(this.#unsent)
    this.#watch()
  }

  change(values) {
    if (this.#channel?.readyState === 'open') this.#channel.send(JSON.stringify(values))
    else Object.assign(this.#unsent, values)
  }

  pause(paused) {
    this.change({ paused })
  }

  async measure() {
    const traffic = { bytesUp: 0, bytesDown: 0, frames: 0, roundTripMs: 0 }
    for (const entry of (await this.#peer.getStats()).values()) {
      if (entry.type === 'outbound-rtp') traffic.frames += entry.framesEncoded ?? 0
      if (entry.type !== 'candidate-pair' || !entry.nominated) continue
      traffic.bytesUp += entry.bytesSent
      traffic.bytesDown += entry.bytesReceived
      traffic.roundTripMs = 1000 * (entry.currentRoundTripTime ?? 0)
    }
    return traffic
  }

  close() {
    this.#isClosed = true
    this.#end.resolve(new Lost(''))
    clearTimeout(this.#interrupted)
    if (this.#sessionId) {
      const path = `${OFFER}/${this.#sessionId}`
      const options = { method: 'DELETE', keepalive: true, key: this.#key }
      this.#farewell = send(path, options).catch(() => {}) // The server may have ended it before.
      this.#sessionId = ''
    }
    this.#farewell.then(() => this.#peer?.close())
  }

  /** Send a candidate, or those that came before the session had an id. */
  #trickle(candidate) {
    if (candidate !== undefined) this.#candidates.push(candidate)
    if (!this.#sessionId || this.#candidates.length === 0) return
    const candidates = this.#candidates.splice(0)
    const path = `${OFFER}/${this.#sessionId}`
    // If one is lost, another may do; if none does, there is no connection in time.
    send(path, { method: 'PATCH', json: { candidates }, key: this.#key }).catch(() => {})
  }

  async #connected() {
    const peer = this.#peer
    const { promise, resolve } = deferred()
    const unavailable = new WebRtcUnavailable(strings.live.noPath, true)
    const check = () => {
      if (this.#channel.readyState === 'open' && this.video) resolve(null)
      if (peer.connectionState === 'failed') resolve(unavailable)
    }
    peer.onconnectionstatechange = check
    this.#channel.onopen = check
    const timer = setTimeout(() => resolve(unavailable), CONNECT_MS)
    const error = await Promise.race([promise, this.ended])
    clearTimeout(timer)
    if (error) throw error
  }

  /** Notice that the connection breaks off. */
  #watch() {
    const peer = this.#peer
    const { live } = strings
    const lose = () => this.#end.resolve(new Lost(live.interrupted, { mayRetry: true }))
    this.#channel.onclose = lose
    peer.onconnectionstatechange = () => {
      clearTimeout(this.#interrupted)
      if (peer.connectionState === 'failed') lose()
      if (peer.connectionState === 'disconnected')
        this.#interrupted = setTimeout(lose, INTERRUPTED_MS)
    }
  }

  #take(message) {
    if (message.type !== 'stream_stopped') return this.#request.onMessage(message)
    this.#sessionId = ''
    const sentence = strings.live.stopped(asSentence(message.error_message))
    const retryAfter = message.retry_after
    this.#end.resolve(new Lost(sentence, { mayRetry: retryAfter !== undefined, retryAfter }))
  }
}

async function askIceServers(key) {
  try {
    return await ask(ICE_SERVERS, { key })
  } catch (error) {
    if (error.status === 404) throw new WebRtcUnavailable(strings.live.webRtcOff, false)
    throw error
  }
}

/** @param {any} error of an offer */
function asUnavailable(error) {
  // Browsers without VP8 and H.264 exist.
  const isOffer = error instanceof ServerError && /^sdp\b/.test(error.answer?.detail)
  throw isOffer ? new WebRtcUnavailable(error.message, true) : error
}
