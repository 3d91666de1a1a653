// The jobs of the server that this key may see, kept up to date by one stream of events.

import { abilitiesOf, isEnded } from './job_view.js'
import { forEachOf, mayPass, patiently, pauseAfter, sleep } from './patience.js'
import { ask, asServerError, send, ServerError } from './server.js'
import { endIfSilent, readEvents } from './streams.js'
import { strings } from './strings.js'

const JOBS = 'api/v1/jobs'
const FIELDS = [
  'id',
  'job_type',
  'status',
  'priority',
  'attempts',
  'max_attempts',
  'progress',
  'input',
  'query',
  'output',
  'error',
  'webhook_url',
  'created_at',
  'started_at',
  'finished_at',
  'next_attempt_at',
].join()
const PAGE = 100
const MAX_PAGE = 1000
const MAX_JOBS = 10_000
const MAX_IDS = 200
const CHANGES_AT_ONCE = 4
/** The server sends a comment every 15 s. */
const SILENCE_MS = 40_000
/** Another process may work on the same jobs, and its changes are not in the stream. */
const RECHECK_MS = 15_000

/** @typedef {any} Job as the server describes it */

const ACTIONS = {
  retry: { path: '', method: 'PUT' },
  cancel: { path: '/cancel', method: 'POST' },
  remove: { path: '', method: 'DELETE' },
}

/** Jobs by id, the newest first in `sorted`. */
export class JobList {
  /** @type {Map<string, Job>} */
  jobs = new Map()
  /** Of the next older page; null at the end. @type {string | null} */
  cursor = null
  isLoaded = false
  isLive = false
  /** Whether the server refuses to tell, with this key. */
  isRefused = false
  /** Why the list isn't live; null if it is, or if that isn't known yet. */
  error = null
  #onChange
  #lastId = ''
  #failures = 0
  /** Whether jobs may have changed that the stream didn't tell of. */
  #isStale = true
  /** @type {Promise<void> | null} */
  #reloading = null
  /**
   * What changes while a list is on its way, which is older: by id, null for what was removed.
   * Null if no list is on its way.
   * @type {Map<string, Job | null> | null}
   */
  #changed = null
  /** @type {Map<string, number>} */
  #seenAt = new Map()

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange
  }

  get sorted() {
    return [...this.jobs.values()].sort((a, b) => (a.id < b.id ? 1 : -1))
  }

  /** Put a job that an answer shows, unless the stream has shown it since. */
  add(job, before = undefined) {
    if (this.jobs.get(job.id) === before) this.#put(job)
    this.#onChange()
  }

  /** Follow the stream until `signal` fires, also if the server is away for a while. */
  async follow(signal) {
    const recheck = setInterval(() => this.#recheck(signal), RECHECK_MS)
    while (!signal.aborted) {
      try {
        await this.#readStream(signal)
      } catch (error) {
        if (signal.aborted) break
        this.error = error
        this.isRefused = error instanceof ServerError && !mayPass(error) && error.status < 500
        if (this.isRefused) break
      }
      this.isLive = false
      this.#onChange()
      await sleep(pauseAfter(this.error ?? {}, ++this.#failures), signal)
    }
    clearInterval(recheck)
    this.isLive = false
    this.#onChange()
  }

  async #readStream(signal) {
    await this.#reloading // of the stream before, which has ended
    const abort = new AbortController()
    const end = (error) => abort.abort(error)
    const onAbort = () => end(signal.reason)
    signal.addEventListener('abort', onAbort)
    // A stream without an id begins with a reset.
    const headers = this.#lastId && !this.#isStale ? { 'Last-Event-ID': this.#lastId } : {}
    try {
      const path = `${JOBS}/events?fields=${FIELDS}`
      const response = await send(path, { signal: abort.signal, headers })
      if (!this.#isStale) this.#setLive()
      const onSilence = () => end(new ServerError(strings.errors.network))
      const body = endIfSilent(response.body, SILENCE_MS, onSilence)
      for await (const { event, data, id } of readEvents(body)) {
        this.#take(event, JSON.parse(data), abort.signal, end)
        if (id) this.#lastId = id // only the last event of a batch has one
      }
    } catch (error) {
      throw abort.signal.aborted
        ? abort.signal.reason
        : asServerError(error, strings.errors.network)
    } finally {
      signal.removeEventListener('abort', onAbort)
      abort.abort()
    }
  }

  #setLive() {
    this.#failures = 0
    this.isLive = true
    this.error = null
    this.#onChange()
  }

  #take(event, data, signal, onError) {
    if (event === 'reset') {
      this.#isStale = true
      this.#reloading ??= this.#reload(signal, onError)
      return
    }
    if (event === 'job') this.#put(data)
    if (event === 'removed') this.#drop(data.id)
    this.#onChange()
  }

  #put(changes) {
    const job = { ...this.jobs.get(changes.id), ...changes }
    if (isEnded(job)) this.#seenAt.delete(job.id)
    else this.#seenAt.set(job.id, Date.now())
    this.#changed?.set(job.id, job)
    this.jobs.set(job.id, job)
    if (this.jobs.size > 1.1 * MAX_JOBS) this.#trim()
  }

  /** Forget the oldest jobs that have ended; they can be loaded again. */
  #trim() {
    const kept = this.sorted.filter((job, index) => index < MAX_JOBS || !isEnded(job))
    this.jobs = new Map(kept.map((job) => [job.id, job]))
    this.cursor = kept[MAX_JOBS - 1].id
  }

  #drop(id) {
    this.#changed?.set(id, null)
    this.#seenAt.delete(id)
    this.jobs.delete(id)
  }

  /** Load the list, and once more if there was a reset meanwhile. */
  async #reload(signal, onError) {
    try {
      while (this.#isStale) {
        this.#isStale = false
        await this.#load(signal)
      }
      this.#setLive()
    } catch (error) {
      this.#isStale = true
      onError(error)
    }
    this.#changed = null
    this.#reloading = null
  }

  /** List as many jobs as are known, and forget the others. */
  async #load(signal) {
    const changed = new Map()
    this.#changed = changed
    const onTrouble = (error) => {
      this.error = error
      this.#onChange()
    }
    const found = new Map()
    const wanted = Math.min(Math.max(this.jobs.size, PAGE), MAX_JOBS)
    let cursor = ''
    do {
      const limit = Math.min(wanted - found.size, MAX_PAGE)
      const list = () => ask(pathOf(limit, cursor), { signal })
      const page = await patiently(list, signal, onTrouble)
      for (const job of page.jobs) found.set(job.id, job)
      cursor = page.next_cursor
    } while (cursor && found.size < wanted)
    for (const [id, job] of changed) {
      if (job) found.set(id, job)
      else found.delete(id)
    }
    this.jobs = found
    this.cursor = cursor
    this.isLoaded = true
  }

  /** Load the next older jobs. `onTrouble` is called before each wait for the server. */
  async loadOlder(signal, onTrouble) {
    const list = () => ask(pathOf(MAX_PAGE, this.cursor), { signal })
    const page = await patiently(list, signal, onTrouble)
    for (const job of page.jobs) if (!this.jobs.has(job.id)) this.jobs.set(job.id, job)
    this.cursor = this.jobs.size < MAX_JOBS ? page.next_cursor : null
    this.#onChange()
  }

  /** Ask for the jobs that should have ended, of which nothing was heard for a while. */
  async #recheck(signal) {
    const isQuiet = ({ id }) => Date.now() - (this.#seenAt.get(id) ?? 0) > RECHECK_MS
    const ids = [...this.jobs.values()]
      .filter((job) => !isEnded(job) && isQuiet(job))
      .map(({ id }) => id)
      .slice(-MAX_IDS)
    if (ids.length === 0 || !this.isLive) return
    const before = new Map(ids.map((id) => [id, this.jobs.get(id)]))
    try {
      const { jobs } = await ask(`${JOBS}?ids=${ids}&fields=${FIELDS}`, { signal })
      const found = new Map(jobs.map((job) => [job.id, job]))
      for (const [id, job] of before) {
        if (this.jobs.get(id) !== job) continue
        if (found.has(id)) this.#put(found.get(id))
        else this.#drop(id)
      }
      this.#onChange()
    } catch {
      // The next time, or the stream, will tell.
    }
  }

  /**
   * Do the same to each of some jobs that it is possible for. Trouble that passes is waited out.
   * @param {'retry' | 'cancel' | 'remove'} action
   * @param {string[]} ids
   * @param {AbortSignal} signal
   * @param {(done: number, total: number) => void} onProgress
   * @param {(error: Error) => void} onTrouble called before each wait
   * @returns {Promise<Error[]>} what the server refused
   */
  async change(action, ids, signal, onProgress, onTrouble) {
    const jobs = ids.map((id) => this.jobs.get(id)).filter((job) => job && abilitiesOf(job)[action])
    const refused = []
    let done = 0
    await forEachOf(jobs, CHANGES_AT_ONCE, async (job) => {
      try {
        await this.#changeOne(action, job, signal, onTrouble)
      } catch (error) {
        if (!signal.aborted) refused.push(error)
      }
      onProgress(++done, jobs.length)
    })
    return refused
  }

  async #changeOne(action, job, signal, onTrouble) {
    const { path, method } = ACTIONS[action]
    try {
      const request = () => ask(`${JOBS}/${job.id}${path}`, { method, signal })
      const answer = await patiently(request, signal, onTrouble)
      if (action !== 'remove') this.add(answer, job)
    } catch (error) {
      if (error.status !== 404) throw error // else it is gone, as after a repeated removal
      this.#drop(job.id)
    }
    if (action === 'remove') this.#drop(job.id)
    this.#onChange()
  }
}

const pathOf = (limit, cursor) =>
  `${JOBS}?limit=${limit}&fields=${FIELDS}${cursor ? `&cursor=${cursor}` : ''}`
