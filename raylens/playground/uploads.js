// Pictures on their way to the queue: checked first, then sent as one job each, a few at a time.

import { mayPass, pauseAfter, sleep } from './patience.js'
import { checkBytes, PictureError, readPicture, toDataUrl, UndisplayableError } from './pictures.js'
import { ask, refusedField } from './server.js'
import { strings } from './strings.js'

const CHECKS = 2
const SENDERS = 3
const MAX_TRIES = 3
const JOBS = 'api/v1/jobs'

/**
 * A request for a job, without its picture.
 * @typedef {{job_type: string, input: any, priority?: number}} JobRequest
 */

/**
 * @typedef {object} Upload
 * @property {number} id
 * @property {string} path
 * @property {File | null} file null if it can't be read, or once it is sent
 * @property {'checking' | 'ready' | 'waiting' | 'sending' | 'sent' | 'refused'} state
 * @property {string} reason why it is refused
 * @property {import('./pictures.js').Picture | null} picture null if the browser can't show
 *   it, or once it is sent
 * @property {boolean} isTaken whether the check has begun
 * @property {JobRequest | null} request
 * @property {string} key of the request: however often it is sent, there is one job
 * @property {number} failures of the server on this picture
 * @property {string} jobId
 */

/**
 * A setting of all pictures that the server refuses.
 * @typedef {{field: string, reason: string, message: string}} BadSetting
 * `message` says the same without the field's control beside it.
 */

let count = 0

/** The pictures of a tab. Whatever is added ends as a job, or is refused with a reason. */
export class Uploads {
  /** @type {Upload[]} */
  all = []
  isPaused = false
  /** Why nothing is sent for the moment, and until when; null if there is no reason. */
  hold = null
  /** @type {BadSetting | null} why the last submission was ended */
  badSetting = null
  /** @type {import('./pictures.js').Limits | null} */
  limits = null
  #onChange
  #onJob
  #abort = new AbortController()
  #checks = 0
  #senders = 0
  #mostSenders = SENDERS
  #failures = 0

  /**
   * @param {() => void} onChange
   * @param {(job: any, picture: import('./pictures.js').Picture | null) => void} onJob gets the
   *   picture to keep
   */
  constructor(onChange, onJob) {
    this.#onChange = onChange
    this.#onJob = onJob
  }

  /** @param {import('./dropped_files.js').Found[]} found */
  add(found) {
    const added = found.map(({ path, file }) => ({
      id: ++count,
      path,
      file,
      state: 'checking',
      reason: '',
      picture: null,
      isTaken: false,
      request: null,
      key: '',
      failures: 0,
      jobId: '',
    }))
    this.all = [...this.all, ...added]
    this.#go()
  }

  /**
   * Send what is there and isn't sent yet.
   * @param {JobRequest} request
   */
  submit(request) {
    this.badSetting = null
    if (!this.isBusy) this.hideSent()
    for (const upload of this.chosen) {
      if (JSON.stringify(upload.request) !== JSON.stringify(request)) upload.key = newKey()
      upload.request = request
      if (upload.state === 'ready') upload.state = 'waiting'
    }
    this.resume()
  }

  pause() {
    this.isPaused = true
    this.#onChange()
  }

  resume() {
    this.isPaused = false
    if (this.hold) this.#interrupt()
    else this.#go()
  }

  /** Check what was refused once more, and send it if the rest was sent. */
  again() {
    for (const upload of this.all.filter(({ state }) => state === 'refused'))
      Object.assign(upload, { state: 'checking', isTaken: false, reason: '', failures: 0 })
    this.#go()
  }

  /** Send nothing more. What has not arrived can be submitted again. */
  stop() {
    for (const upload of this.all) {
      if (upload.state === 'checking') upload.request = null
      if (upload.state === 'waiting' || upload.state === 'sending') upload.state = 'ready'
    }
    this.isPaused = false
    this.#interrupt()
  }

  /** @param {BadSetting | null} badSetting null once it is changed */
  blame(badSetting) {
    this.badSetting = badSetting
    this.#onChange()
  }

  /** Forget what could be submitted. */
  clear() {
    this.#forget(isChosen)
  }

  hideRefused() {
    this.#forget(({ state }) => state === 'refused')
  }

  hideSent() {
    this.#forget(({ state }) => state === 'sent')
  }

  /** @param {(upload: Upload) => boolean} isGone */
  #forget(isGone) {
    this.all.filter(isGone).forEach(release)
    this.all = this.all.filter((upload) => !isGone(upload))
    this.#onChange()
  }

  /** What can be submitted. */
  get chosen() {
    return this.all.filter(isChosen)
  }

  get isBusy() {
    return this.all.some(
      ({ state, request }) =>
        state === 'waiting' || state === 'sending' || (state === 'checking' && request),
    )
  }

  /** End all waits and requests, and begin again with what is left. */
  #interrupt() {
    this.#abort.abort()
    this.#abort = new AbortController()
    this.hold = null
    this.#failures = 0
    this.#go()
  }

  /** Start as many workers as there is work for. */
  #go() {
    while (this.#checks < CHECKS && this.all.some(isUnchecked)) this.#runChecks()
    while (this.#senders < this.#mostSenders && this.#next()) this.#runSender()
    this.#onChange()
  }

  async #runChecks() {
    this.#checks += 1
    for (let upload = this.all.find(isUnchecked); upload; upload = this.all.find(isUnchecked)) {
      upload.isTaken = true
      await this.#check(upload)
      this.#go()
    }
    this.#checks -= 1
  }

  async #check(upload) {
    try {
      if (!upload.file) throw new PictureError(strings.errors.unreadableFile(upload.path))
      upload.picture = await readForGrid(upload.file, upload.path, this.limits)
      upload.state = upload.request ? 'waiting' : 'ready'
    } catch (error) {
      refuse(
        upload,
        error instanceof PictureError ? error.message : strings.errors.unreadableFile(upload.path),
      )
    }
  }

  /** Return what to send next; undefined if there is nothing, or not now. */
  #next() {
    if (this.isPaused || this.hold) return undefined
    return this.all.find(({ state }) => state === 'waiting')
  }

  async #runSender() {
    this.#senders += 1
    const { signal } = this.#abort
    for (let upload = this.#next(); upload && !signal.aborted; upload = this.#next()) {
      if (this.#senders > this.#mostSenders) break
      upload.state = 'sending'
      this.#onChange()
      await this.#send(upload, signal)
    }
    this.#senders -= 1
    this.#go()
  }

  /** @param {Upload} upload @param {AbortSignal} signal */
  async #send(upload, signal) {
    const { request, key, path, file } = upload
    try {
      const image = await toDataUrl(file)
      const json = { ...request, input: { image, ...request.input }, query: { file: path } }
      const job = await ask(JOBS, { json, signal, headers: { 'Idempotency-Key': key } })
      upload.state = 'sent'
      upload.jobId = job.id
      this.#failures = 0
      this.#mostSenders = Math.min(this.#mostSenders + 1, SENDERS)
      this.#onJob(job, upload.picture)
      Object.assign(upload, { file: null, picture: null })
      this.#go()
    } catch (error) {
      if (!signal.aborted) await this.#recover(upload, error, signal)
      else if (upload.state === 'sending') upload.state = 'waiting'
    }
  }

  async #recover(upload, error, signal) {
    const refused = refusedField(error)
    if (refused && refused.field in upload.request.input) {
      this.badSetting = { ...refused, message: error.message } // no other picture needs to be sent
      this.stop()
      return
    }
    const isTrouble = mayPass(error) || error.needsKey
    if (!isTrouble && !(error.status >= 500 && ++upload.failures < MAX_TRIES)) {
      refuse(upload, error.status ? error.message : strings.errors.unreadableFile(upload.path))
      return
    }
    upload.state = 'waiting'
    this.#mostSenders = 1 // one asks whether it goes on
    if (this.hold) return
    this.#failures += 1
    const pause = error.needsKey ? Number.POSITIVE_INFINITY : pauseAfter(error, this.#failures)
    this.hold = { error, until: Date.now() + pause }
    this.#onChange()
    if (pause === Number.POSITIVE_INFINITY) return // until there is another key
    await sleep(pause, signal)
    if (!signal.aborted) this.hold = null
  }
}

/** @param {Upload} upload whether it can be submitted, and isn't yet */
export function isChosen({ state, request }) {
  return state === 'ready' || (state === 'checking' && !request)
}

const isUnchecked = ({ state, isTaken }) => state === 'checking' && !isTaken

/** @param {Upload} upload @param {string} reason */
function refuse(upload, reason) {
  upload.state = 'refused'
  upload.reason = reason
}

/** Return a picture for the grid; null if only the server can show it. Raises PictureError. */
async function readForGrid(file, path, limits) {
  try {
    return await readPicture(file, path.split('/').pop(), limits, null, true)
  } catch (error) {
    if (!(error instanceof UndisplayableError)) throw error
    if (limits) checkBytes(file, path, limits)
    return null
  }
}

/** @param {Upload} upload */
function release({ picture }) {
  if (picture) for (const url of [picture.view, picture.thumbnail]) URL.revokeObjectURL(url)
}

/** Return a random idempotency key, also on pages over plain http. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}
