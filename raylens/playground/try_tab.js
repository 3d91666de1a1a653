// The tab "Try": one picture, one task, one answer.

import { html, useEffect, useMemo, useRef, useState } from './vendor/htm-preact.js'
import { Notice, Segmented } from './controls.js'
import { Form, readFields } from './form.js'
import { findingsOf } from './overlay.js'
import { PictureInput } from './picture_input.js'
import { History, Result } from './result.js'
import { newRun } from './run.js'
import { useRuns } from './runs.js'
import { strings } from './strings.js'
import { buildRequest, fieldsOf, promptOf, TASKS } from './tasks.js'

/**
 * @param {{
 *   isShown: boolean,
 *   server: any,
 *   schemas: any,
 *   serverError: Error | null,
 *   health: any,
 *   onKeyWanted: () => void,
 *   given: import('./pictures.js').Picture | null,
 * }} props
 * `given` is a picture from another tab.
 */
export function TryTab({ isShown, server, schemas, serverError, health, onKeyWanted, given }) {
  const [picture, setPicture] = useState(null)
  const [task, setTask] = useState('caption')
  const [model, setModel] = useState('')
  const [values, setValues] = useState({})
  const [ownError, setError] = useState(null)
  const error = ownError ?? (serverError?.needsKey ? serverError : null)
  const [active, setActive] = useState(null)
  const { runs, run, start, stop, select, clear } = useRuns()

  const models = health?.models ?? {}
  const able = Object.entries(models).filter(
    ([, info]) => !info.loaded || info.tasks.includes(task),
  )
  const chosen = able.some(([name]) => name === model) ? model : ''
  const answering = chosen || able[0]?.[0] || server?.models[0] || ''
  const allFields = useMemo(
    () => [
      ...readFields(schemas?.pipelines.moondream?.config_schema, server?.defaults),
      ...readFields(server?.request_schema),
    ],
    [schemas, server],
  )
  const abilities = chosen
    ? (models[chosen].tasks ?? [])
    : Object.values(models).flatMap((info) => info.tasks ?? [])
  const fields = fieldsOf(allFields, task, abilities)
  const prompt = promptOf(fields)
  const change = (name, value) => setValues((old) => ({ ...old, [name]: value }))

  const takePicture = (next, example) => {
    setPicture(next)
    setActive(null)
    select(null)
    if (example) setValues((old) => ({ ...old, ...strings.prompts[example] }))
  }
  useEffect(() => {
    if (given) takePicture(given)
  }, [given])
  const missing = missingSentence(picture, server, schemas, prompt, values)
  const submit = (event) => {
    event?.preventDefault()
    if (run?.state === 'working') return
    if (missing) {
      setError(missing === strings.run.notLoaded && serverError ? serverError : new Error(missing))
      return
    }
    setError(null)
    setActive(null)
    start(newRun(buildRequest(task, chosen, fields, values), picture))
  }
  const form = useRef(null)
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.current.requestSubmit()
  }
  const showRun = (past) => {
    select(past)
    setPicture(past.picture)
    setActive(null)
  }
  const isPhoto = picture !== null && picture.example !== 'scene.png'
  const isPocket = /(^|\/)pocket\b/.test(models[run?.model || answering]?.checkpoint ?? '')

  return html`
    <div class="try" hidden=${!isShown} onKeyDown=${onKeyDown}>
      <div class="left">
        <${PictureInput}
          ...${{ picture, server, active }}
          findings=${run ? findingsOf(run) : []}
          onActive=${setActive}
          onPicture=${takePicture}
          onError=${setError}
        />
        <${History} runs=${runs} current=${run} onSelect=${showRun} onClear=${clear} />
      </div>
      <div class="right">
        ${
          error &&
          html`<${Notice} kind="error"><p>${error.message}</p><div class="actions">
        ${
          error.needsKey &&
          html`
            <button type="button" onClick=${onKeyWanted}>${strings.errors.enterKey}</button>
          `
        }
        ${
          ownError &&
          html`
            <button type="button" onClick=${() => setError(null)}>${strings.errors.close}</button>
          `
        }</div><//>`
        }
        <form
          class="card settings"
          ref=${form}
          onSubmit=${submit}
          aria-labelledby="settings-title"
          novalidate
        >
          <h2 id="settings-title" class="hidden">${strings.settings.title}</h2>
          <${Segmented}
            name="task"
            label=${strings.tasks.label}
            value=${task}
            onChange=${setTask}
            options=${TASKS.map((id) => ({ id, label: strings.tasks[id] }))}
          />
          <p class="hint">${strings.tasks.hints[task]}</p>
          <${Form}
            fields=${fields.filter(({ category }) => category === 'input')}
            values=${values}
            onChange=${change}
          />
          <div class="field">
            <label for="model">${strings.settings.model}</label>
            <select id="model" onChange=${(event) => setModel(event.target.value)}>
              <option value="" selected=${chosen === ''}>${strings.settings.modelDefault}</option>
              ${able.map(
                ([name]) => html`
                  <option key=${name} value=${name} selected=${name === chosen}>${name}</option>
                `,
              )}
            </select>
          </div>
          <${MoreSettings}
            fields=${fields.filter(({ category }) => category !== 'input')}
            values=${values}
            onChange=${change}
            onReset=${() => setValues((old) => keepOnly(old, prompt))}
          />
          ${isPocket && isPhoto && html`<${Notice} kind="note"><p>${strings.pocket}</p><//>`}
          <div class="run">
            ${
              run?.state === 'working'
                ? html`
                    <button type="button" key="stop" class="primary" onClick=${stop}>
                      ${strings.run.stop}
                    </button>
                  `
                : html`
                    <button type="submit" key="run" class="primary">${strings.run.start}</button>
                  `
            }
            <span class="muted shortcut">${strings.run.shortcut}</span>
          </div>
        </form>
        <${Result}
          ...${{ run, active, onKeyWanted }}
          model=${answering}
          onActive=${setActive}
          onRetry=${submit}
        />
      </div>
    </div>
  `
}

function MoreSettings({ fields, values, onChange, onReset }) {
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
      <${Form} ...${{ fields, values, onChange }} />
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
function keepOnly(values) {
  const { question, detect_object } = values
  return { ...(question ? { question } : {}), ...(detect_object ? { detect_object } : {}) }
}

/** Return what must be done before a request; empty if nothing. */
function missingSentence(picture, server, schemas, prompt, values) {
  const { run } = strings
  if (!picture) return run.needsPicture
  if (!server || !schemas) return run.notLoaded
  if (prompt && !String(values[prompt.name] ?? prompt.default ?? '').trim())
    return run.needsPrompt(prompt.label)
  return ''
}
