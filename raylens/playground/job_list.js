// The jobs of the server that this key may see, kept up to date by one stream of events.

import { forEachOf, mayPass, patiently, pauseAfter, sleep } from './patience.js'
import { ask, send, ServerError } from './server.js'
import { readEvents } from './streams.js'

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

/** @param {Job} job */
export function isEnded({ status }) {
  return status !== 'queued' && status !== 'running'
}

/** @param {Job} job @returns {Record<'retry' | 'cancel' | 'remove', boolean>} what can be done */
export function abilitiesOf(job) {
  return {
    retry: job.status === 'failed' || job.status === 'canceled',
    cancel: !isEnded(job),
    remove: isEnded(job),
  }
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
  #isStale = true
  /**
   * Ids of what changes while a list is on its way, which is older; null if none is.
   * @type {Set<string> | null}
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
    signal.addEventListener('abort', () => clearInterval(recheck))
    for (let failures = 0; !signal.aborted; ) {
      try {
        await this.#readStream(signal, () => {
          failures = 0
        })
      } catch (error) {
        if (signal.aborted) break
        this.error = error
        this.isRefused = error instanceof ServerError && !mayPass(error) && error.status < 500
        if (this.isRefused) break
      }
      this.isLive = false
      this.#onChange()
      await sleep(pauseAfter(this.error ?? {}, ++failures), signal)
    }
    clearInterval(recheck)
    this.isLive = false
    this.#onChange()
  }

  async #readStream(signal, onOpen) {
    const abort = new AbortController()
    const end = () => abort.abort()
    signal.addEventListener('abort', end)
    const headers = this.#lastId ? { 'Last-Event-ID': this.#lastId } : {}
    try {
      const path = `${JOBS}/events?fields=${FIELDS}`
      const response = await send(path, { signal: abort.signal, headers })
      onOpen()
      this.isLive = true
      this.error = null
      this.#onChange()
      if (this.#isStale) this.#reload(abort.signal)
      for await (const { event, data, id } of readEvents(endIfSilent(response.body, end))) {
        this.#take(event, JSON.parse(data), abort.signal)
        this.#lastId = id
      }
    } finally {
      signal.removeEventListener('abort', end)
      abort.abort()
    }
  }

  #take(event, data, signal) {
    if (event === 'reset') {
      this.#isStale = true
      this.#reload(signal)
      return
    }
    if (event === 'job') this.#put(data)
    if (event === 'removed') this.#drop(data.id)
    this.#onChange()
  }

  #put(job) {
    this.#changed?.add(job.id)
    if (isEnded(job)) this.#seenAt.delete(job.id)
    else this.#seenAt.set(job.id, Date.now())
    this.jobs.set(job.id, { ...this.jobs.get(job.id), ...job })
    if (this.jobs.size > 1.1 * MAX_JOBS) this.#trim()
  }

  /** Forget the oldest jobs that have ended; they can be loaded again. */
  #trim() {
    const kept = this.sorted.filter((job, index) => index < MAX_JOBS || !isEnded(job))
    this.jobs = new Map(kept.map((job) => [job.id, job]))
    this.cursor = kept[MAX_JOBS - 1].id
  }

  #drop(id) {
    this.#changed?.add(id)
    this.#seenAt.delete(id)
    this.jobs.delete(id)
  }

  /** List as many jobs as are known, and forget the others. */
  async #reload(signal) {
    const changed = new Set()
    this.#changed = changed
    const found = new Map()
    const wanted = Math.min(Math.max(this.jobs.size, PAGE), MAX_JOBS)
    let cursor = ''
    try {
      do {
        const limit = Math.min(wanted - found.size, MAX_PAGE)
        const page = await patiently(() => ask(pathOf(limit, cursor), { signal }), signal)
        for (const job of page.jobs) found.set(job.id, job)
        cursor = page.next_cursor
      } while (cursor && found.size < wanted)
    } catch (error) {
      if (signal.aborted) return // the next stream begins with a reload
      this.error = error
      this.#onChange()
      return
    }
    for (const id of changed) {
      const job = this.jobs.get(id)
      if (job) found.set(id, job)
      else found.delete(id)
    }
    if (this.#changed === changed) this.#changed = null
    this.jobs = found
    this.cursor = cursor
    this.isLoaded = true
    this.#isStale = false
    this.#onChange()
  }

  /** Load the next older jobs. */
  async loadOlder(signal) {
    const page = await patiently(() => ask(pathOf(MAX_PAGE, this.cursor), { signal }), signal)
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
   * @returns {Promise<Error[]>} what the server refused
   */
  async change(action, ids, signal, onProgress = () => {}) {
    const jobs = ids.map((id) => this.jobs.get(id)).filter((job) => job && abilitiesOf(job)[action])
    const refused = []
    let done = 0
    await forEachOf(jobs, CHANGES_AT_ONCE, async (job) => {
      try {
        await this.#changeOne(action, job, signal)
      } catch (error) {
        if (!signal.aborted) refused.push(error)
      }
      onProgress(++done, jobs.length)
    })
    return refused
  }

  async #changeOne(action, job, signal) {
    const { path, method } = ACTIONS[action]
    try {
      const request = () => ask(`${JOBS}/${job.id}${path}`, { method, signal })
      const answer = await patiently(request, signal)
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

/**
 * Return a stream, and call `onSilence` if nothing comes for too long: the connection may be dead
 * although no end was heard of.
 */
function endIfSilent(stream, onSilence) {
  let timer = setTimeout(onSilence, SILENCE_MS)
  const watch = new TransformStream({
    transform(chunk, controller) {
      clearTimeout(timer)
      timer = setTimeout(onSilence, SILENCE_MS)
      controller.enqueue(chunk)
    },
  })
  return stream.pipeThrough(watch)
}
