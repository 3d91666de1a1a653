// The tab "Compare": one picture and one task, for two models or with two settings.

import { html, useEffect, useMemo, useRef, useState } from './vendor/htm-preact.js'
import { useSides } from './compare_sides.js'
import { asRecord, compare, NO_COMPARISON, verdict } from './comparison.js'
import { CopyButton, ErrorNotice, Notice } from './controls.js'
import { Form } from './form.js'
import { PictureInput } from './picture_input.js'
import { Result } from './result.js'
import { strings } from './strings.js'
import {
  isBeyondPocket,
  missingForRun,
  ModelSelect,
  TaskSettings,
  useExamplePrompts,
  useTaskSettings,
} from './task_settings.js'
import { MODEL } from './variants.js'

const NO_FINDINGS = []
const ignore = () => {}

/** @param {import('./try_tab.js').Props} props */
export function CompareTab(props) {
  const { isShown, server, schemas, serverError, health, source, onSource, onKeyWanted } = props
  const { shrinking } = props
  const { picture } = source
  const settings = useTaskSettings({ server, schemas, health })
  useExamplePrompts(source, settings.setValues)
  const compared = useSides({ server, schemas, health }, picture, settings)
  const { sides } = compared
  const [error, setError] = useState(null)
  const isWorking = sides.some(({ run }) => run?.state === 'working')

  /** Start sides, or say what is missing. */
  const start = (started) => {
    const missing = missingForRun(picture, settings, { server, schemas, serverError })
    setError(missing?.needsKey ? null : missing)
    if (!missing) started.forEach((side) => side.start())
  }
  const submit = (event) => {
    event.preventDefault()
    if (!isWorking) start(sides)
  }
  const form = useRef(null)
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.current.requestSubmit()
  }
  const answers = useRef(null)
  useEffect(() => {
    if (isWorking) answers.current.scrollIntoView({ block: 'nearest' })
  }, [isWorking])

  return html`
    <div class="compare" hidden=${!isShown} onKeyDown=${onKeyDown}>
      <div class="columns">
        <div class="left">
          <${PictureInput}
            prefix="compare"
            ...${{ isShown, picture, server, shrinking }}
            findings=${NO_FINDINGS}
            active=${null}
            onActive=${ignore}
            onPicture=${(next, example) => onSource({ picture: next, example })}
            onError=${setError}
          />
        </div>
        <div class="right">
          <${ErrorNotice} ...${{ error, onKeyWanted }} onClose=${setError} />
          <form
            class="card settings"
            ref=${form}
            onSubmit=${submit}
            aria-labelledby="compare-settings"
            novalidate
          >
            <h2 id="compare-settings" class="hidden">${strings.settings.title}</h2>
            <${SharedSettings} ...${{ settings, compared }} />
            ${
              sides.some(({ answering }) => isBeyondPocket(health, answering, picture)) &&
              html`<${Notice} kind="note"><p>${strings.pocket}</p><//>`
            }
            <${Buttons}
              isWorking=${isWorking}
              onStop=${() => sides.forEach(({ stop }) => stop())}
            />
          </form>
        </div>
      </div>
      <div class="answers" ref=${answers}>
        <${Sides}
          ...${{ compared, onKeyWanted }}
          models=${settings.able}
          onRetry=${(side) => start([side])}
        />
      </div>
    </div>
  `
}

function SharedSettings({ settings, compared }) {
  const { variants, variant, setVariant, own, hasModels } = compared
  const elsewhere = [...own.map(({ name }) => name), ...(hasModels ? [MODEL] : [])]
  return html`
    <${TaskSettings} prefix="compare-" settings=${settings} without=${elsewhere}>
      <div class="field">
        <label for="compare-variant">${strings.compare.differing}</label>
        <select id="compare-variant" onChange=${(event) => setVariant(event.target.value)}>
          ${variants.map(
            ({ id, label }) => html`
              <option key=${id} value=${id} selected=${id === variant}>${label}</option>
            `,
          )}
        </select>
      </div>
    <//>
  `
}

function Buttons({ isWorking, onStop }) {
  const { compare: texts, run } = strings
  return html`
    <div class="run">
      ${
        isWorking
          ? html`
              <button type="button" key="stop" class="primary" onClick=${onStop}>
                ${texts.stop}
              </button>
            `
          : html`
              <button type="submit" key="run" class="primary">${texts.start}</button>
            `
      }
      <span class="muted shortcut">${run.shortcut}</span>
    </div>
  `
}

function Sides({ compared, models, onRetry, onKeyWanted }) {
  const { sides, own, hasModels } = compared
  const [a, b] = sides.map(({ run }) => run)
  const areDone = a?.state === 'done' && b?.state === 'done' && a.request.task === b.request.task
  const comparisons = useMemo(
    () => (areDone ? compare(a, b) : [NO_COMPARISON, NO_COMPARISON]),
    [a, b, areDone],
  )
  const isOld = sides.some((side) => side.isOld)
  return html`
    ${(a || b) && html`<${Verdict} ...${{ a, b, areDone, isOld }} />`}
    <div class="sides">
      ${sides.map(
        (side, index) => html`
          <${Result}
            key=${index}
            id=${`compare-${index}`}
            title=${strings.compare.sides[index]}
            empty=${strings.compare.empty}
            run=${side.run}
            isOld=${side.isOld}
            model=${side.answering}
            active=${side.active}
            onActive=${side.setActive}
            onKeyWanted=${onKeyWanted}
            onRetry=${() => onRetry(side)}
            comparison=${comparisons[index]}
          >
            <${OwnSettings} ...${{ index, side, own, models, hasModels }} />
          <//>
        `,
      )}
    </div>
  `
}

function OwnSettings({ index, side, own, models, hasModels }) {
  const prefix = `compare-${index}`
  return html`
    <div class="own">
      ${
        hasModels &&
        html`
          <${ModelSelect}
            id=${`${prefix}-model`}
            models=${models}
            value=${side.model}
            onChange=${side.setModel}
            mayBeAny=${false}
          />
        `
      }
      <${Form} prefix=${prefix} fields=${own} values=${side.values} onChange=${side.change} />
    </div>
  `
}

function Verdict({ a, b, areDone, isOld }) {
  const { compare: texts } = strings
  const isWorking = [a, b].some((run) => run?.state === 'working')
  const text = areDone ? verdict(a, b) : isWorking ? texts.atOnce : texts.incomplete
  const asJson = () =>
    JSON.stringify({ a: a ? asRecord(a) : null, b: b ? asRecord(b) : null }, null, 2)
  return html`
    <div class="card verdict">
      <p role="status" class=${isOld ? 'muted' : ''}>${text}</p>
      <${CopyButton} label=${texts.copy} getText=${asJson} />
    </div>
  `
}
