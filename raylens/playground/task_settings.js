// What is asked, of which model, and how: the settings that tabs share, rendered from the schemas.

import { html, useMemo, useState } from './vendor/htm-preact.js'
import { Segmented } from './controls.js'
import { Form } from './form.js'
import { strings } from './strings.js'
import { fieldsOf, promptOf, readSettings, TASKS } from './tasks.js'

/**
 * The task, the model and the settings that a user has chosen.
 * @param {{server: any, schemas: any, health: any}} known what the server told
 */
export function useTaskSettings({ server, schemas, health }) {
  const [task, setTask] = useState('caption')
  const [model, setModel] = useState('')
  const [values, setValues] = useState({})
  const models = health?.models ?? {}
  const able = Object.entries(models)
    .filter(([, info]) => !info.loaded || info.tasks.includes(task))
    .map(([name]) => name)
  const chosen = able.includes(model) ? model : ''
  const allFields = useMemo(() => readSettings(schemas, server), [schemas, server])
  const abilities = chosen
    ? (models[chosen].tasks ?? [])
    : Object.values(models).flatMap((info) => info.tasks ?? [])
  const fields = fieldsOf(allFields, task, abilities)
  return {
    task,
    setTask,
    able,
    /** Empty leaves the choice to the server. */
    chosen,
    setModel,
    /** The model that would answer. */
    answering: chosen || able[0] || server?.models[0] || '',
    fields,
    prompt: promptOf(fields),
    values,
    setValues,
  }
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
 * The controls of a task, a model and settings. `prefix` is that of their ids.
 * @param {{prefix?: string, settings: ReturnType<typeof useTaskSettings>}} props
 */
export function TaskSettings({ prefix = '', settings }) {
  const { task, setTask, able, chosen, setModel, fields, values, setValues } = settings
  const change = (name, value) => setValues((old) => ({ ...old, [name]: value }))
  const ids = `${prefix}field`
  const ofCategory = (isInput) => fields.filter(({ category }) => (category === 'input') === isInput)
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
    <div class="field">
      <label for=${`${prefix}model`}>${strings.settings.model}</label>
      <select id=${`${prefix}model`} onChange=${(event) => setModel(event.target.value)}>
        <option value="" selected=${chosen === ''}>${strings.settings.modelDefault}</option>
        ${able.map(
          (name) => html`
            <option key=${name} value=${name} selected=${name === chosen}>${name}</option>
          `,
        )}
      </select>
    </div>
    <${MoreSettings}
      prefix=${ids}
      fields=${ofCategory(false)}
      values=${values}
      onChange=${change}
      onReset=${() => setValues(keepPrompts)}
    />
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
          changed > 0 &&
          html`
            <span class="badge">${settings.changed(changed)}</span>
          `
        }
      </summary>
      <${Form} ...${{ prefix, fields, values, onChange }} />
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
