// The tab "Jobs": many pictures, each a job of the queue, and what becomes of them.

import { html, useEffect, useMemo, useRef, useState } from './vendor/htm-preact.js'
import { Notice } from './controls.js'
import { JobDialog } from './job_dialog.js'
import { JobPictures } from './job_pictures.js'
import { JobList } from './job_list.js'
import { JobsCard } from './jobs_card.js'
import { JobSettings, toJobRequest, useJobOptions } from './job_settings.js'
import { strings } from './strings.js'
import { missingSetting, useTaskSettings } from './task_settings.js'
import { UploadCard } from './upload_card.js'
import { Uploads } from './uploads.js'
import { WatchesCard } from './watches_card.js'

/**
 * @param {{
 *   isShown: boolean,
 *   server: any,
 *   schemas: any,
 *   health: any,
 *   keyVersion: number,
 *   onKeyWanted: () => void,
 * }} props
 */
export function JobsTab({ isShown, server, schemas, health, keyVersion, onKeyWanted }) {
  const { list, pictures, uploads } = useJobs({ isShown, keyVersion, limits: server?.limits })
  const settings = useTaskSettings({ server, schemas, health })
  const [options, setOptions] = useJobOptions()
  const [openId, setOpenId] = useState('')
  const [problem, setProblem] = useState('')
  const visible = useRef([])
  const { jobs: texts } = strings
  const { chosen } = uploads
  const submit = (event) => {
    event.preventDefault()
    const missing =
      chosen.length === 0 ? texts.needsPictures : missingSetting(settings, { server, schemas })
    setProblem(missing)
    if (!missing) uploads.submit(toJobRequest(settings, options))
  }
  const change = async (action, ids, onProgress) => {
    const refused = await list.change(action, ids, NEVER, onProgress)
    setProblem(refused.length ? texts.someRefused(refused.length, refused[0].message) : '')
  }
  const step = (by) => {
    const ids = visible.current
    const next = ids[ids.indexOf(openId) + by]
    if (next && ids.includes(openId)) setOpenId(next)
  }
  return html`
    <div class="columns jobs" hidden=${!isShown}>
      <div class="left">
        <${UploadCard} ...${{ uploads, isShown, onKeyWanted }} jobs=${list.jobs} />
        <${JobsCard}
          ...${{ list, pictures, visible, onKeyWanted }}
          onChange=${change}
          onOpen=${setOpenId}
        />
        <${WatchesCard} ...${{ isShown, keyVersion }} />
      </div>
      <div class="right">
        ${
          problem &&
          html`<${Notice} kind="error"><p>${problem}</p><div class="actions">
            <button type="button" onClick=${() => setProblem('')}>${strings.errors.close}</button>
          </div><//>`
        }
        <${JobSettings}
          ...${{ settings, options, setOptions }}
          count=${chosen.length}
          onSubmit=${submit}
        />
      </div>
      ${
        openId &&
        html`
          <${JobDialog}
            job=${list.jobs.get(openId) ?? null}
            pictures=${pictures}
            onChange=${change}
            onStep=${step}
            onClose=${() => setOpenId('')}
          />
        `
      }
    </div>
  `
}

const NEVER = new AbortController().signal

/**
 * The jobs, their pictures and the uploads of this tab, shown once per frame. The stream is open
 * while the tab is shown: a browser has few connections to a server.
 */
function useJobs({ isShown, keyVersion, limits }) {
  const [, setVersion] = useState(0)
  const frame = useRef(0)
  const update = () => {
    frame.current ||= requestAnimationFrame(() => {
      frame.current = 0
      setVersion((version) => version + 1)
    })
  }
  const list = useMemo(() => new JobList(update), [keyVersion])
  const latest = useRef(list)
  latest.current = list
  const pictures = useMemo(() => new JobPictures(), [])
  const uploads = useMemo(
    () =>
      new Uploads(update, (job, upload) => {
        pictures.set(job.id, upload.picture)
        latest.current.add(job)
      }),
    [],
  )
  uploads.limits = limits ?? null
  useEffect(() => {
    if (uploads.hold?.error.needsKey) uploads.resume()
  }, [keyVersion])
  useStream(list, isShown)
  useEffect(() => {
    const onLeave = (event) => uploads.isBusy && event.preventDefault()
    window.addEventListener('beforeunload', onLeave)
    return () => window.removeEventListener('beforeunload', onLeave)
  }, [])
  return { list, pictures, uploads }
}

/** Follow a list while it can be seen. */
function useStream(list, isShown) {
  const [isHidden, setHidden] = useState(document.hidden)
  useEffect(() => {
    const onVisible = () => setHidden(document.hidden)
    document.addEventListener('visibilitychange', onVisible)
    return () => document.removeEventListener('visibilitychange', onVisible)
  }, [])
  useEffect(() => {
    if (!isShown || isHidden) return undefined
    const abort = new AbortController()
    list.follow(abort.signal)
    return () => abort.abort()
  }, [list, isShown, isHidden])
}
