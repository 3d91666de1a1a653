// What the jobs of a submission ask, where they report, and how urgent they are.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { TextField } from './controls.js'
import { strings } from './strings.js'
import { TaskSettings } from './task_settings.js'
import { buildRequest } from './tasks.js'

const MAX_PRIORITY = 100
const OF_WEBHOOK = ['webhook_url', 'webhook_secret']

/** @typedef {{webhook_url: string, webhook_secret: string, priority: number}} JobOptions */

/** @returns {[JobOptions, (change: Partial<JobOptions>) => void]} */
export function useJobOptions() {
  const [options, setOptions] = useState({ webhook_url: '', webhook_secret: '', priority: 0 })
  return [options, (change) => setOptions((old) => ({ ...old, ...change }))]
}

/**
 * Return the request for a job, without its picture.
 * @param {ReturnType<typeof import('./task_settings.js').useTaskSettings>} settings
 * @param {JobOptions} options
 * @returns {import('./uploads.js').JobRequest}
 */
export function toJobRequest({ task, chosen, fields, values }, options) {
  const { body } = buildRequest(task, chosen, fields.filter(isOfJobs), values)
  const { stream, stream_options, settings, ...input } = body
  const { max_objects, ...sampling } = settings ?? {}
  if (max_objects !== undefined) input.max_objects = max_objects
  if (Object.keys(sampling).length > 0) input.settings = sampling
  for (const name of OF_WEBHOOK) if (options[name]) input[name] = options[name]
  const { priority } = options
  return { job_type: task, input, ...(priority ? { priority } : {}) }
}

/**
 * Return an option that needs another one; null if there is none.
 * @param {JobOptions} options
 * @returns {import('./uploads.js').BadSetting | null}
 */
export function optionWithoutEffect({ webhook_url, webhook_secret }) {
  if (!webhook_secret || webhook_url) return null
  const reason = strings.jobs.secretAlone
  return { field: 'webhook_secret', reason, message: reason }
}

/** Fields of requests that jobs have, too. */
const OF_JOBS = ['question', 'object', 'length', 'recipe']
const SETTINGS_OF_JOBS = ['temperature', 'top_p', 'max_tokens', 'max_objects']
const REQUESTED = [...OF_JOBS, ...SETTINGS_OF_JOBS.map((name) => `settings.${name}`)]
const isOfJobs = ({ hints }) => REQUESTED.includes(hints.request)

/**
 * @param {{
 *   settings: ReturnType<typeof import('./task_settings.js').useTaskSettings>,
 *   options: JobOptions,
 *   setOptions: (change: Partial<JobOptions>) => void,
 *   badSetting: import('./uploads.js').BadSetting | null,
 *   count: number,
 *   onSubmit: (event: Event) => void,
 * }} props
 */
export function JobSettings({ settings, options, setOptions, badSetting, count, onSubmit }) {
  const { jobs: texts } = strings
  const delivery = useRef(null)
  useEffect(() => {
    const input = badSetting && delivery.current.querySelector(`[name=${badSetting.field}]`)
    if (!input) return
    delivery.current.open = true
    input.focus()
  }, [badSetting])
  const labels = { webhook_url: texts.webhook, webhook_secret: texts.secret }
  const field = (name) => ({
    id: `job-${name}`,
    name,
    label: labels[name],
    error: badSetting?.field === name && `${labels[name]}: ${badSetting.reason}`,
  })
  const shown = { ...settings, fields: settings.fields.filter(isOfJobs) }
  return html`
    <form
      class="card settings"
      onSubmit=${onSubmit}
      aria-labelledby="job-settings-title"
      novalidate
    >
      <h2 id="job-settings-title" class="hidden">${texts.settings}</h2>
      <${TaskSettings} prefix="jobs-" settings=${shown} />
      <details class="more" ref=${delivery}>
        <summary>${texts.delivery}</summary>
        <${TextField}
          ...${field('webhook_url')}
          hint=${texts.webhookHelp}
          inputmode="url"
          placeholder="https://"
          value=${options.webhook_url}
          onInput=${(event) => setOptions({ webhook_url: event.target.value.trim() })}
        />
        <${TextField}
          ...${field('webhook_secret')}
          hint=${texts.secretHelp}
          type="password"
          value=${options.webhook_secret}
          onInput=${(event) => setOptions({ webhook_secret: event.target.value.trim() })}
        />
        <${TextField}
          id="job-priority"
          label=${texts.priority}
          hint=${texts.priorityHelp}
          type="number"
          min=${-MAX_PRIORITY}
          max=${MAX_PRIORITY}
          step="1"
          value=${options.priority}
          onChange=${({ target }) =>
            setOptions({ priority: target.validity.valid ? target.valueAsNumber || 0 : 0 })}
        />
      </details>
      <div class="run">
        <button type="submit" class="primary">${texts.submit(count)}</button>
      </div>
    </form>
  `
}
