// The parts of a form that asks about a picture: the task, the model, and the settings.

import { html, useEffect, useMemo, useState } from './vendor/htm-preact.js'
import { Segmented } from './controls.js'
import { Form, readFields } from './form.js'
import { strings } from './strings.js'
import { TASKS } from './tasks.js'

/**
 * The page's picture, and the bundled example that it is.
 * @typedef {{picture: import('./pictures.js').Picture | null, example?: string}} Source
 */

/**
 * All settings of requests, with the server's defaults.
 * @returns {import('./form.js').Field[]}
 */
export function useFields(schemas, server) {
  return useMemo(
    () => [
      ...readFields(schemas?.pipelines.moondream?.config_schema, server?.defaults),
      ...readFields(server?.request_schema),
    ],
    [schemas, server],
  )
}

/**
 * Values of a form by the names of its fields. An example brings its own prompts.
 * @param {Source} source
 */
export function useValues(source) {
  const [values, setValues] = useState({})
  useEffect(() => {
    if (source.example) setValues((old) => ({ ...old, ...strings.prompts[source.example] }))
  }, [source])
  const change = (name, value) => setValues((old) => ({ ...old, [name]: value }))
  const reset = () => setValues(keepPrompts)
  return { values, change, reset }
}

function keepPrompts({ question, detect_object }) {
  return { ...(question ? { question } : {}), ...(detect_object ? { detect_object } : {}) }
}

/**
 * Return the names of the models that can do a task, or that are not loaded yet.
 * @param {any} health the answer of /health; null without one
 * @param {string} task
 * @returns {string[]}
 */
export function modelsFor(health, task) {
  return Object.entries(health?.models ?? {})
    .filter(([, info]) => !info.loaded || info.tasks.includes(task))
    .map(([name]) => name)
}

/**
 * Return what a model can do; with an empty name, what any of them can.
 * @param {any} health
 * @param {string} model
 * @returns {string[]}
 */
export function abilitiesOf(health, model) {
  const models = health?.models ?? {}
  const asked = model ? [models[model]] : Object.values(models)
  return asked.flatMap((info) => info?.tasks ?? [])
}

/** @param {any} health @param {string} model */
export function isPocket(health, model) {
  return /(^|\/)pocket\b/.test(health?.models[model]?.checkpoint ?? '')
}

/** @param {{id: string, task: string, onTask: (task: string) => void}} props */
export function TaskChoice({ id, task, onTask }) {
  const { tasks } = strings
  return html`
    <${Segmented}
      name=${`${id}-task`}
      label=${tasks.label}
      value=${task}
      onChange=${onTask}
      options=${TASKS.map((name) => ({ id: name, label: tasks[name] }))}
    />
    <p class="hint">${tasks.hints[task]}</p>
  `
}

/**
 * @param {{
 *   id: string,
 *   models: string[],
 *   value: string,
 *   onChange: (model: string) => void,
 *   mayBeAny?: boolean,
 * }} props
 * `mayBeAny` adds the server's choice, which is an empty name.
 */
export function ModelSelect({ id, models, value, onChange, mayBeAny = true }) {
  const { settings } = strings
  return html`
    <div class="field">
      <label for=${id}>${settings.model}</label>
      <select id=${id} onChange=${(event) => onChange(event.target.value)}>
        ${
          mayBeAny &&
          html` <option value="" selected=${value === ''}>${settings.modelDefault}</option> `
        }
        ${models.map(
          (name) => html`
            <option key=${name} value=${name} selected=${name === value}>${name}</option>
          `,
        )}
      </select>
    </div>
  `
}

/**
 * @param {{
 *   id: string,
 *   fields: import('./form.js').Field[],
 *   values: Record<string, any>,
 *   onChange: (name: string, value: any) => void,
 *   onReset: () => void,
 * }} props
 */
export function MoreSettings({ id, fields, values, onChange, onReset }) {
  const { settings } = strings
  const changed = fields.filter(
    ({ name, default: usual }) => (values[name] ?? usual) !== usual,
  ).length
  if (fields.length === 0) return null
  return html`
    <details class="more">
      <summary>
        ${settings.more}${
          changed > 0 && html` <span class="badge">${settings.changed(changed)}</span> `
        }
      </summary>
      <${Form} ...${{ id, fields, values, onChange }} />
      ${
        changed > 0 &&
        html` <button type="button" class="quiet" onClick=${onReset}>${settings.reset}</button> `
      }
    </details>
  `
}

/**
 * Return what must be done before a request; empty if nothing.
 * @param {import('./pictures.js').Picture | null} picture
 * @param {boolean} isReady whether the server has told its settings
 * @param {import('./form.js').Field | undefined} prompt
 * @param {Record<string, any>} values
 */
export function missingSentence(picture, isReady, prompt, values) {
  const { run } = strings
  if (!picture) return run.needsPicture
  if (!isReady) return run.notLoaded
  if (prompt && !String(values[prompt.name] ?? prompt.default ?? '').trim())
    return run.needsPrompt(prompt.label)
  return ''
}
