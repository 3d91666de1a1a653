// The pictures of jobs: those that were dropped here, and else the server's.

import { useEffect, useState } from './vendor/htm-preact.js'
import { pictureOf } from './job_view.js'
import { patiently } from './patience.js'
import { PictureError, readPicture, UndisplayableError } from './pictures.js'
import { send } from './server.js'

const MAX_KEPT = 500
const READS_AT_ONCE = 2

/** @typedef {import('./pictures.js').Picture} Picture */

/**
 * @typedef {object} Entry
 * @property {Picture | null} picture null until it is there
 * @property {Promise<Picture | null>} loading
 */

/**
 * Pictures by the job's id. The server is asked for each once, and only if it is looked at; again
 * after an error.
 */
export class JobPictures {
  /** What was looked at last is at the end. @type {Map<string, Entry>} */
  #entries = new Map()
  #abort = new AbortController()
  #waiting = []
  #reading = 0

  /** Keep the picture of a file that was dropped here. @param {Picture | null} picture */
  set(jobId, picture) {
    if (picture) this.#keep(jobId, { picture, loading: Promise.resolve(picture) })
  }

  /** Return what is at hand at once. */
  peek(job) {
    return this.#entries.get(job.id)?.picture ?? null
  }

  /** Return the picture of a job; null if there is none that a browser can show. */
  load(job) {
    const entry = this.#entries.get(job.id) ?? this.#begin(job)
    if (entry) this.#keep(job.id, entry)
    return entry?.loading ?? Promise.resolve(null)
  }

  /** Load no more, and release the pictures. */
  close() {
    this.#abort.abort()
    for (const entry of this.#entries.values()) release(entry)
    this.#entries.clear()
  }

  #begin(job) {
    if (!pictureOf(job)) return null
    const entry = { picture: null, loading: null }
    entry.loading = this.#queue(() => download(job, this.#abort.signal)).then(
      (picture) => {
        entry.picture = picture
        return picture
      },
      (error) => {
        const isFinal = error instanceof PictureError || error instanceof UndisplayableError
        if (!isFinal) this.#entries.delete(job.id)
        return null
      },
    )
    return entry
  }

  /** Do the latest first: it is what is looked at. */
  #queue(work) {
    return new Promise((resolve, reject) => {
      this.#waiting.push(() => work().then(resolve, reject))
      this.#go()
    })
  }

  #go() {
    while (this.#reading < READS_AT_ONCE && this.#waiting.length > 0) {
      this.#reading += 1
      this.#waiting.pop()().finally(() => {
        this.#reading -= 1
        this.#go()
      })
    }
  }

  #keep(jobId, entry) {
    this.#entries.delete(jobId)
    this.#entries.set(jobId, entry)
    if (this.#entries.size <= MAX_KEPT) return
    const [oldest, old] = this.#entries.entries().next().value
    this.#entries.delete(oldest)
    release(old)
  }
}

/** @param {Entry} entry */
async function release({ loading }) {
  const picture = await loading
  if (picture) for (const url of [picture.view, picture.thumbnail]) URL.revokeObjectURL(url)
}

async function download(job, signal) {
  const path = `api/v1/jobs/${job.id}/pictures/${pictureOf(job)}`
  const response = await patiently(() => send(path, { signal }), signal)
  return readPicture(await response.blob(), job.id, null, null, true)
}

/**
 * The picture of a job that is shown; null until it is there.
 * @param {JobPictures} pictures
 * @param {import('./job_list.js').Job | null} job
 */
export function useJobPicture(pictures, job) {
  const [loaded, setLoaded] = useState({ id: '', picture: null })
  const id = job?.id
  useEffect(() => {
    let isWanted = true
    if (job)
      pictures.load(job).then((picture) => isWanted && setLoaded({ id: job.id, picture }))
    return () => {
      isWanted = false
    }
  }, [pictures, id, Boolean(job && pictureOf(job))])
  if (!job) return null
  return pictures.peek(job) ?? (loaded.id === id ? loaded.picture : null)
}
