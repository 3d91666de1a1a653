// The tab "Try": one picture, one task, one answer.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { ErrorNotice, Notice } from './controls.js'
import { History } from './history.js'
import { findingsOf } from './overlay.js'
import { PictureInput } from './picture_input.js'
import { Result } from './result.js'
import { isOld, newRun } from './run.js'
import { useRuns } from './runs.js'
import { strings } from './strings.js'
import {
  isBeyondPocket,
  missingForRun,
  TaskSettings,
  useExamplePrompts,
  useTaskSettings,
} from './task_settings.js'
import { buildRequest } from './tasks.js'

const MAX_RUNS = 30

/**
 * @typedef {object} Props
 * @property {boolean} isShown
 * @property {any} server
 * @property {any} schemas
 * @property {Error | null} serverError
 * @property {any} health
 * @property {boolean} isAway whether the server does not answer
 * @property {import('./picture_input.js').Shrinking} shrinking
 * @property {import('./task_settings.js').Source} source
 * @property {(source: import('./task_settings.js').Source) => void} onSource
 * @property {() => void} onKeyWanted
 */

/** @param {Props} props */
export function TryTab(props) {
  const { isShown, server, schemas, serverError, health, source, onSource, onKeyWanted } = props
  const { shrinking } = props
  const { picture } = source
  const settings = useTaskSettings({ server, schemas, health })
  useExamplePrompts(source, settings.setValues)
  const [error, setError] = useState(null)
  const [active, setActive] = useState(null)
  const { runs, run, start, stop, select, clear } = useRuns(picture, MAX_RUNS)

  const takePicture = (next, example) => {
    onSource({ picture: next, example })
    setActive(null)
    select(null)
  }
  const { task, chosen, fields, values } = settings
  const request = buildRequest(task, chosen, fields, values)
  const submit = (event) => {
    event?.preventDefault()
    if (run?.state === 'working') return
    const missing = missingForRun(picture, settings, { server, schemas, serverError })
    setError(missing?.needsKey ? null : missing)
    if (missing) return
    setActive(null)
    start(newRun(request, picture, settings.current))
  }
  const form = useRef(null)
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.current.requestSubmit()
  }
  const showRun = (past) => {
    select(past)
    settings.restore(past.settings)
    onSource({ picture: past.picture })
    setActive(null)
  }
  const answer = useRef(null)
  // On a phone, the answer is below the button that asks for it, and grows as it comes.
  useEffect(() => {
    if (run) answer.current.scrollIntoView({ block: 'nearest' })
  }, [run, run?.state])

  return html`
    <div class="columns try" hidden=${!isShown} onKeyDown=${onKeyDown}>
      <div class="left">
        <${PictureInput}
          prefix="try"
          ...${{ isShown, picture, server, shrinking, active }}
          findings=${run ? findingsOf(run) : []}
          onActive=${setActive}
          onPicture=${takePicture}
          onError=${setError}
        />
        <${History} runs=${runs} current=${run} onSelect=${showRun} onClear=${clear} />
      </div>
      <div class="right">
        <${ErrorNotice} ...${{ error, onKeyWanted }} onClose=${setError} />
        <form
          class="card settings"
          ref=${form}
          onSubmit=${submit}
          aria-labelledby="settings-title"
          novalidate
        >
          <h2 id="settings-title" class="hidden">${strings.settings.title}</h2>
          <${TaskSettings} settings=${settings} />
          ${
            isBeyondPocket(health, run?.model || settings.answering, picture) &&
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
            isOld=${isOld(run, settings.allFields, settings.current)}
            model=${settings.answering}
            onActive=${setActive}
            onRetry=${submit}
          />
        </div>
      </div>
    </div>
  `
}
