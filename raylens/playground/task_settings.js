// What is asked, of which model, and how: the settings that tabs share, rendered from the schemas.

import { html, useEffect, useMemo, useState } from './vendor/htm-preact.js'
import { Segmented } from './controls.js'
import { Form } from './form.js'
import { strings } from './strings.js'
import { fieldsOf, promptOf, readSettings, TASKS } from './tasks.js'

/**
 * What the server told: its limits and settings, the pipelines' schemas, and its models.
 * @typedef {{server: any, schemas: any, health: any}} Known
 */

/**
 * The page's picture, and the bundled example that it is.
 * @typedef {{picture: import('./pictures.js').Picture | null, example?: string}} Source
 */

/**
 * The task, the model and the settings that a user has chosen.
 * @param {Known} known
 */
export function useTaskSettings({ server, schemas, health }) {
  const [task, setTask] = useState('caption')
  const [model, setModel] = useState('')
  const [values, setValues] = useState({})
  const able = modelsFor(health, task)
  const chosen = able.includes(model) ? model : ''
  const allFields = useFields({ server, schemas })
  const fields = fieldsOf(allFields, task, abilitiesOf(health, chosen))
  return {
    task,
    setTask,
    able,
    /** Empty leaves the choice to the server. */
    chosen,
    setModel,
    /** The model that would answer. */
    answering: chosen || able[0] || server?.models[0] || '',
    allFields,
    /** Those of the task. */
    fields,
    prompt: promptOf(fields),
    values,
    setValues,
    /** Those of a run, for whoever asks about the same again. */
    current: { task, model, values },
    restore: (past) => {
      setTask(past.task)
      setModel(past.model)
      setValues(past.values)
    },
  }
}

/**
 * All settings of requests, with the server's defaults.
 * @param {{server: any, schemas: any}} known
 * @returns {import('./form.js').Field[]}
 */
export function useFields({ server, schemas }) {
  return useMemo(() => readSettings(schemas, server), [schemas, server])
}

/**
 * Fill in the prompts that an example brings.
 * @param {Source} source
 * @param {ReturnType<typeof useTaskSettings>['setValues']} setValues
 */
export function useExamplePrompts(source, setValues) {
  useEffect(() => {
    if (source.example) setValues((old) => ({ ...old, ...strings.prompts[source.example] }))
  }, [source])
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

/** Whether a model knows drawn shapes only. @param {any} health @param {string} model */
export function isPocket(health, model) {
  return /(^|\/)pocket\b/.test(health?.models?.[model]?.checkpoint ?? '')
}

/**
 * Whether a model that knows drawn shapes only is asked about something else.
 * @param {any} health
 * @param {string} model
 * @param {import('./pictures.js').Picture | null} picture
 */
export function isBeyondPocket(health, model, picture) {
  return isPocket(health, model) && picture !== null && picture.example !== 'scene.png'
}

/**
 * Return what must be done before a request; empty if nothing.
 * @param {ReturnType<typeof useTaskSettings>} settings
 * @param {{server: any, schemas: any}} known
 */
export function missingSetting({ prompt, values }, { server, schemas }) {
  const { run } = strings
  if (!server || !schemas) return run.notLoaded
  if (prompt && !String(values[prompt.name] ?? prompt.default ?? '').trim())
    return run.needsPrompt(prompt.label)
  return ''
}

/**
 * Return why there can be no run yet, as an error; null if there can. The page itself shows one that
 * another key may mend.
 * @param {import('./pictures.js').Picture | null} picture
 * @param {ReturnType<typeof useTaskSettings>} settings
 * @param {{server: any, schemas: any, serverError: any}} known
 */
export function missingForRun(picture, settings, known) {
  const { run } = strings
  const missing = picture ? missingSetting(settings, known) : run.needsPicture
  if (missing === run.notLoaded && known.serverError) return known.serverError
  return missing ? new Error(missing) : null
}

/**
 * The controls of a task, a model and settings.
 * @param {{
 *   prefix?: string,
 *   settings: ReturnType<typeof useTaskSettings>,
 *   without?: string[],
 *   children?: any,
 * }} props
 * `prefix` is that of their ids. `without` are the names of fields, and perhaps "model", whose
 * controls are elsewhere. `children` come before the model.
 */
export function TaskSettings({ prefix = '', settings, without = [], children }) {
  const { task, setTask, able, chosen, setModel, fields, values, setValues } = settings
  const change = (name, value) => setValues((old) => ({ ...old, [name]: value }))
  const ids = `${prefix}field`
  const shown = fields.filter(({ name }) => !without.includes(name))
  const ofCategory = (isInput) => shown.filter(({ category }) => (category === 'input') === isInput)
  return html`
    <${Segmented}
      name=${`${prefix}task`}
      label=${strings.tasks.label}
      value=${task}
      onChange=${setTask}
      options=${TASKS.map((name) => ({ id: name, label: strings.tasks[name] }))}
    />
    <p class="hint">${strings.tasks.hints[task]}</p>
    <${Form} ...${{ prefix: ids, values }} fields=${ofCategory(true)} onChange=${change} />
    ${children}
    ${
      !without.includes('model') &&
      html`
        <${ModelSelect}
          id=${`${prefix}model`}
          models=${able}
          value=${chosen}
          onChange=${setModel}
        />
      `
    }
    <${MoreSettings}
      prefix=${ids}
      fields=${ofCategory(false)}
      values=${values}
      onChange=${change}
      onReset=${() => setValues(keepPrompts)}
    />
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
          html`
            <option value="" selected=${value === ''}>${settings.modelDefault}</option>
          `
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

function MoreSettings({ prefix, fields, values, onChange, onReset }) {
  const { settings } = strings
  const changed = fields.filter(
    ({ name, default: usual }) => (values[name] ?? usual) !== usual,
  ).length
  if (fields.length === 0) return null
  return html`
    <details class="more">
      <summary>
        ${settings.more}${
          changed > 0 && html`
            <span class="badge">${settings.changed(changed)}</span>
          `
        }
      </summary>
      <div class="fields"><${Form} ...${{ prefix, fields, values, onChange }} /></div>
      ${
        changed > 0 &&
        html`
          <button type="button" class="quiet" onClick=${onReset}>${settings.reset}</button>
        `
      }
    </details>
  `
}

/** Return the values of the prompts alone. */
function keepPrompts({ question, detect_object }) {
  return { ...(question ? { question } : {}), ...(detect_object ? { detect_object } : {}) }
}
