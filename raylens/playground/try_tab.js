// The tab "Try": one picture, one task, one answer.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { ErrorNotice, Notice } from './controls.js'
import { Form } from './form.js'
import { History } from './history.js'
import { findingsOf } from './overlay.js'
import { PictureInput } from './picture_input.js'
import { Result } from './result.js'
import { newRun } from './run.js'
import { useRuns } from './runs.js'
import { strings } from './strings.js'
import {
  abilitiesOf,
  isPocket,
  missingSentence,
  ModelSelect,
  modelsFor,
  MoreSettings,
  TaskChoice,
  useFields,
  useValues,
} from './task_form.js'
import { buildRequest, fieldsOf, promptOf } from './tasks.js'

/**
 * @param {{
 *   isShown: boolean,
 *   server: any,
 *   schemas: any,
 *   serverError: Error | null,
 *   health: any,
 *   source: import('./task_form.js').Source,
 *   onSource: (source: import('./task_form.js').Source) => void,
 *   onKeyWanted: () => void,
 * }} props
 */
export function TryTab(props) {
  const { isShown, server, schemas, serverError, health, source, onSource, onKeyWanted } = props
  const { picture } = source
  const [task, setTask] = useState('caption')
  const [model, setModel] = useState('')
  const { values, change, reset } = useValues(source)
  const [ownError, setError] = useState(null)
  const [active, setActive] = useState(null)
  const { runs, run: selected, start, stop, select, clear } = useRuns()
  const run = selected?.picture === picture ? selected : null // another tab may change the picture

  const able = modelsFor(health, task)
  const chosen = able.includes(model) ? model : ''
  const answering = chosen || able[0] || server?.models[0] || ''
  const fields = fieldsOf(useFields(schemas, server), task, abilitiesOf(health, chosen))
  const prompt = promptOf(fields)

  const takePicture = (next, example) => {
    onSource({ picture: next, example })
    setActive(null)
    select(null)
  }
  const missing = missingSentence(picture, Boolean(server && schemas), prompt, values)
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
    onSource({ picture: past.picture })
    setActive(null)
  }
  const answer = useRef(null)
  // On a phone, the answer is below the button that asks for it.
  useEffect(() => {
    if (run?.state === 'working') answer.current.scrollIntoView({ block: 'nearest' })
  }, [run])
  const isPhoto = picture !== null && picture.example !== 'scene.png'

  return html`
    <div class="columns" hidden=${!isShown} onKeyDown=${onKeyDown}>
      <div class="left">
        <${PictureInput}
          id="try"
          ...${{ isShown, picture, server, active }}
          findings=${run ? findingsOf(run) : []}
          onActive=${setActive}
          onPicture=${takePicture}
          onError=${setError}
        />
        <${History} runs=${runs} current=${run} onSelect=${showRun} onClear=${clear} />
      </div>
      <div class="right">
        <${ErrorNotice} ...${{ ownError, serverError, onKeyWanted }} onClose=${setError} />
        <form
          class="card settings"
          ref=${form}
          onSubmit=${submit}
          aria-labelledby="settings-title"
          novalidate
        >
          <h2 id="settings-title" class="hidden">${strings.settings.title}</h2>
          <${TaskChoice} id="try" task=${task} onTask=${setTask} />
          <${Form}
            fields=${fields.filter(({ category }) => category === 'input')}
            values=${values}
            onChange=${change}
          />
          <${ModelSelect} id="model" models=${able} value=${chosen} onChange=${setModel} />
          <${MoreSettings}
            fields=${fields.filter(({ category }) => category !== 'input')}
            values=${values}
            onChange=${change}
            onReset=${reset}
          />
          ${
            isPhoto &&
            isPocket(health, run?.model || answering) &&
            html`<${Notice} kind="note"><p>${strings.pocket}</p><//>`
          }
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
        <div class="answers" ref=${answer}>
          <${Result}
            id="result"
            title=${strings.result.title}
            empty=${strings.result.empty}
            ...${{ run, active, onKeyWanted }}
            model=${answering}
            onActive=${setActive}
            onRetry=${submit}
          />
        </div>
      </div>
    </div>
  `
}
