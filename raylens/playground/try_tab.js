// The tab "Try": one picture, one task, one answer.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { Notice } from './controls.js'
import { findingsOf } from './overlay.js'
import { PictureInput } from './picture_input.js'
import { History, Result } from './result.js'
import { newRun } from './run.js'
import { useRuns } from './runs.js'
import { strings } from './strings.js'
import { missingSetting, TaskSettings, useTaskSettings } from './task_settings.js'
import { buildRequest } from './tasks.js'

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
  const settings = useTaskSettings({ server, schemas, health })
  const [ownError, setError] = useState(null)
  const error = ownError ?? (serverError?.needsKey ? serverError : null)
  const [active, setActive] = useState(null)
  const { runs, run, start, stop, select, clear } = useRuns()

  const takePicture = (next, example) => {
    setPicture(next)
    setActive(null)
    select(null)
    if (example) settings.setValues((old) => ({ ...old, ...strings.prompts[example] }))
  }
  useEffect(() => {
    if (given) takePicture(given)
  }, [given])
  const missing = picture
    ? missingSetting(settings, { server, schemas })
    : strings.run.needsPicture
  const submit = (event) => {
    event?.preventDefault()
    if (run?.state === 'working') return
    if (missing) {
      setError(missing === strings.run.notLoaded && serverError ? serverError : new Error(missing))
      return
    }
    setError(null)
    setActive(null)
    const { task, chosen, fields, values } = settings
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
  const model = health?.models?.[run?.model || settings.answering]
  const isPocket = /(^|\/)pocket\b/.test(model?.checkpoint ?? '')

  return html`
    <div class="try" hidden=${!isShown} onKeyDown=${onKeyDown}>
      <div class="left">
        <${PictureInput}
          ...${{ picture, server, active, isShown }}
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
          <${TaskSettings} settings=${settings} />
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
          model=${settings.answering}
          onActive=${setActive}
          onRetry=${submit}
        />
      </div>
    </div>
  `
}
