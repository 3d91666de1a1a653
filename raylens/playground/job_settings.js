// What the jobs of a submission ask, where they report, and how urgent they are.

import { html, useState } from './vendor/htm-preact.js'
import { strings } from './strings.js'
import { TaskSettings } from './task_settings.js'
import { buildRequest } from './tasks.js'

const MAX_PRIORITY = 100

/** @typedef {{webhook: string, secret: string, priority: number}} JobOptions */

/** @returns {[JobOptions, (change: Partial<JobOptions>) => void]} */
export function useJobOptions() {
  const [options, setOptions] = useState({ webhook: '', secret: '', priority: 0 })
  return [options, (change) => setOptions((old) => ({ ...old, ...change }))]
}

/**
 * Return the request for a job, without its picture.
 * @param {ReturnType<typeof import('./task_settings.js').useTaskSettings>} settings
 * @param {JobOptions} options
 * @returns {import('./uploads.js').JobRequest}
 */
export function toJobRequest({ task, chosen, fields, values }, { webhook, secret, priority }) {
  const { body } = buildRequest(task, chosen, fields.filter(isOfJobs), values)
  const { stream, stream_options, settings, ...input } = body
  const { max_objects, ...sampling } = settings ?? {}
  if (max_objects !== undefined) input.max_objects = max_objects
  if (Object.keys(sampling).length > 0) input.settings = sampling
  if (webhook) input.webhook_url = webhook
  if (webhook && secret) input.webhook_secret = secret
  return { job_type: task, input, ...(priority ? { priority } : {}) }
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
 *   count: number,
 *   onSubmit: (event: Event) => void,
 * }} props
 */
export function JobSettings({ settings, options, setOptions, count, onSubmit }) {
  const { jobs: texts } = strings
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
      <details class="more">
        <summary>${texts.delivery}</summary>
        <${Field}
          name="webhook"
          label=${texts.webhook}
          hint=${texts.webhookHelp}
          type="text"
          inputmode="url"
          placeholder="https://"
          value=${options.webhook}
          onInput=${(event) => setOptions({ webhook: event.target.value.trim() })}
        />
        <${Field}
          name="secret"
          label=${texts.secret}
          hint=${texts.secretHelp}
          type="password"
          value=${options.secret}
          onInput=${(event) => setOptions({ secret: event.target.value.trim() })}
        />
        <${Field}
          name="priority"
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

function Field({ name, label, hint, ...input }) {
  const id = `job-${name}`
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      <input
        id=${id}
        name=${name}
        autocomplete="off"
        aria-describedby=${`${id}-hint`}
        ...${input}
      />
      <p class="hint" id=${`${id}-hint`}>${hint}</p>
    </div>
  `
}
