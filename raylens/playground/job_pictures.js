// The pictures of jobs: those that were dropped here, and else the server's.

import { useEffect, useState } from './vendor/htm-preact.js'
import { pictureOf } from './job_view.js'
import { readPicture } from './pictures.js'
import { send } from './server.js'

const MAX_KEPT = 500
const READS_AT_ONCE = 2

/** @typedef {import('./pictures.js').Picture} Picture */

/** Pictures by the job's id. The server is asked for each once, and only if it is looked at. */
export class JobPictures {
  /** Those of files that were dropped here. @type {Map<string, Picture | null>} */
  #own = new Map()
  /** @type {Map<string, Promise<Picture | null>>} */
  #loaded = new Map()
  #waiting = []
  #reading = 0

  /** @param {string} jobId @param {Picture | null} picture */
  set(jobId, picture) {
    if (picture) this.#own.set(jobId, picture)
  }

  /** Return what is at hand at once. */
  peek(job) {
    return this.#own.get(job.id) ?? null
  }

  /** Return the picture of a job; null if there is none that a browser can show. */
  load(job) {
    const own = this.peek(job)
    if (own || !pictureOf(job)) return Promise.resolve(own)
    let loading = this.#loaded.get(job.id)
    if (!loading) {
      loading = this.#queue(() => download(job)).catch(() => null)
      this.#loaded.set(job.id, loading)
      this.#trim()
    }
    return loading
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

  async #trim() {
    if (this.#loaded.size <= MAX_KEPT) return
    const [oldest, loading] = this.#loaded.entries().next().value
    this.#loaded.delete(oldest)
    const picture = await loading
    if (picture) for (const url of [picture.view, picture.thumbnail]) URL.revokeObjectURL(url)
  }
}

async function download(job) {
  const response = await send(`api/v1/jobs/${job.id}/pictures/${pictureOf(job)}`)
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
  }, [id, Boolean(job && pictureOf(job))])
  if (!job) return null
  return pictures.peek(job) ?? (loaded.id === id ? loaded.picture : null)
}
