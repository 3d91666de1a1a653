// The tab "Jobs": many pictures, each a job of the queue, and what becomes of them.

import { html, useEffect, useMemo, useRef, useState } from './vendor/htm-preact.js'
import { ErrorNotice } from './controls.js'
import { ChangeNotices, useChanges } from './job_actions.js'
import { JobDialog } from './job_dialog.js'
import { JobPictures } from './job_pictures.js'
import { JobList } from './job_list.js'
import { JobsCard } from './jobs_card.js'
import { JobSettings, optionWithoutEffect, toJobRequest, useJobOptions } from './job_settings.js'
import { useFrames } from './runs.js'
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
  const changes = useChanges(list)
  const visible = useRef([])
  const { jobs: texts } = strings
  const { chosen, badSetting } = uploads
  const submit = (event) => {
    event.preventDefault()
    const missing =
      chosen.length === 0 ? texts.needsPictures : missingSetting(settings, { server, schemas })
    changes.setProblem(missing)
    const unused = optionWithoutEffect(options)
    uploads.blame(unused)
    if (!missing && !unused) uploads.submit(toJobRequest(settings, options))
  }
  const changeOptions = (change) => {
    uploads.blame(null)
    setOptions(change)
  }
  useEffect(() => {
    if (chosen.length > 0) changes.setProblem('')
  }, [chosen.length])
  const open = (id) => {
    changes.setProblem('')
    setOpenId(id)
  }
  /** Open a neighbor, also of a job that is gone: the newest come first, with the largest ids. */
  const step = (by) => {
    const ids = visible.current
    const next = by < 0 ? ids.findLast((id) => id > openId) : ids.find((id) => id < openId)
    if (next) open(next)
  }
  return html`
    <div class="columns jobs" hidden=${!isShown}>
      <div class="left">
        <${UploadCard} ...${{ uploads, isShown, onKeyWanted }} jobs=${list.jobs} />
        <${JobsCard}
          ...${{ list, pictures, visible, onKeyWanted }}
          onChange=${changes.change}
          onOpen=${open}
        />
        <${WatchesCard} ...${{ isShown, keyVersion }} />
      </div>
      <div class="right">
        ${!openId && html`<${ChangeNotices} changes=${changes} />`}
        ${
          badSetting &&
          !(badSetting.field in options) &&
          html`<${ErrorNotice} error=${badSetting} onClose=${() => uploads.blame(null)} />`
        }
        <${JobSettings}
          ...${{ settings, options, badSetting }}
          setOptions=${changeOptions}
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
            changes=${changes}
            onStep=${step}
            onClose=${() => setOpenId('')}
          />
        `
      }
    </div>
  `
}

/**
 * The jobs, their pictures and the uploads of this tab, shown once per frame. The stream is open
 * while the tab is shown: a browser has few connections to a server.
 */
function useJobs({ isShown, keyVersion, limits }) {
  const update = useFrames()
  const list = useMemo(() => new JobList(update), [keyVersion])
  const pictures = useMemo(() => new JobPictures(), [keyVersion])
  useEffect(() => () => pictures.close(), [pictures])
  const latest = useRef(null)
  latest.current = { list, pictures }
  const uploads = useMemo(
    () =>
      new Uploads(update, (job, picture) => {
        latest.current.pictures.set(job.id, picture)
        latest.current.list.add(job)
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
