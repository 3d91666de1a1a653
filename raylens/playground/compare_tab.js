// The tab "Compare": one picture and one task, for two models or with two settings.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { CopyButton, ErrorNotice, Notice } from './controls.js'
import { asRecord, compare, NO_COMPARISON, verdict } from './comparison.js'
import { Form } from './form.js'
import { PictureInput } from './picture_input.js'
import { Result } from './result.js'
import { newRun } from './run.js'
import { useRuns } from './runs.js'
import { strings } from './strings.js'
import {
  abilitiesOf,
  isBeyondPocket,
  missingSetting,
  ModelSelect,
  TaskSettings,
  useExamplePrompts,
  useFields,
  useTaskSettings,
} from './task_settings.js'
import { buildRequest, fieldsOf } from './tasks.js'
import { ALL, contrastOf, MODEL, settingsOf, variantsOf } from './variants.js'

const NO_FINDINGS = []
const ignore = () => {}

/** @param {import('./try_tab.js').Props} props */
export function CompareTab(props) {
  const { isShown, server, schemas, serverError, health, source, onSource, onKeyWanted } = props
  const { picture } = source
  const settings = useTaskSettings({ server, schemas, health })
  useExamplePrompts(source, settings.setValues)
  const { task, able, chosen, fields, values } = settings
  const allFields = useFields({ server, schemas })
  const [wanted, setWanted] = useState('')
  const [error, setError] = useState(null)
  const sides = [useSide(picture), useSide(picture)]

  const variants = variantsOf(able, fields)
  const differing = variants.some(({ id }) => id === wanted) ? wanted : variants[0].id
  const differs = ({ name }) => differing === ALL || name === differing
  const own = settingsOf(fields).filter(differs)
  const hasModels = differing === MODEL || differing === ALL

  const elsewhere = [...own.map(({ name }) => name), ...(hasModels ? [MODEL] : [])]

  const modelOf = (index) => {
    if (!hasModels) return chosen
    const { model } = sides[index]
    return able.includes(model) ? model : (able[index] ?? able[0] ?? '')
  }
  const valuesOf = (index) => {
    const usual = (field) =>
      index === 1 && differing !== ALL ? contrastOf(field) : (values[field.name] ?? field.default)
    return Object.fromEntries(
      own.map((field) => [field.name, sides[index].values[field.name] ?? usual(field)]),
    )
  }
  const startSide = (index) => {
    const asked = fieldsOf(allFields, task, abilitiesOf(health, modelOf(index)))
    const merged = { ...values, ...valuesOf(index) }
    sides[index].start(newRun(buildRequest(task, modelOf(index), asked, merged), picture))
  }
  const isWorking = sides.some(({ run }) => run?.state === 'working')
  const missing = picture ? missingSetting(settings, { server, schemas }) : strings.run.needsPicture
  const isReady = () => {
    const hasNoServer = missing === strings.run.notLoaded && serverError
    setError(missing ? (hasNoServer ? serverError : new Error(missing)) : null)
    return !missing
  }
  const submit = (event) => {
    event.preventDefault()
    if (!isWorking && isReady()) sides.forEach((_, index) => startSide(index))
  }
  const form = useRef(null)
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.current.requestSubmit()
  }
  const answers = useRef(null)
  useEffect(() => {
    if (isWorking) answers.current.scrollIntoView({ block: 'nearest' })
  }, [isWorking])

  const [a, b] = sides.map(({ run }) => run)
  const areDone = a?.state === 'done' && b?.state === 'done' && a.request.task === b.request.task
  const compared = areDone ? Object.values(compare(a, b)) : [NO_COMPARISON, NO_COMPARISON]
  return html`
    <div class="compare" hidden=${!isShown} onKeyDown=${onKeyDown}>
      <div class="columns">
        <div class="left">
          <${PictureInput}
            prefix="compare"
            ...${{ isShown, picture, server }}
            findings=${NO_FINDINGS}
            active=${null}
            onActive=${ignore}
            onPicture=${(next, example) => onSource({ picture: next, example })}
            onError=${setError}
          />
        </div>
        <div class="right">
          <${ErrorNotice}
            ownError=${error}
            ...${{ serverError, onKeyWanted }}
            onClose=${setError}
          />
          <form
            class="card settings"
            ref=${form}
            onSubmit=${submit}
            aria-labelledby="compare-settings"
            novalidate
          >
            <h2 id="compare-settings" class="hidden">${strings.settings.title}</h2>
            <${TaskSettings} prefix="compare-" settings=${settings} without=${elsewhere}>
              <${VariantSelect} variants=${variants} value=${differing} onChange=${setWanted} />
            <//>
            ${
              sides.some((_, index) =>
                isBeyondPocket(health, modelOf(index) || able[0], picture),
              ) && html`<${Notice} kind="note"><p>${strings.pocket}</p><//>`
            }
            <${Buttons}
              isWorking=${isWorking}
              onStop=${() => sides.forEach(({ stop }) => stop())}
            />
          </form>
        </div>
      </div>
      <div class="answers" ref=${answers}>
        ${(a || b) && html`<${Verdict} ...${{ a, b, areDone }} />`}
        <div class="sides">
          ${sides.map(
            (side, index) => html`
              <${Result}
                key=${index}
                id=${`compare-${index}`}
                title=${strings.compare.sides[index]}
                empty=${strings.compare.empty}
                run=${side.run}
                model=${modelOf(index) || able[0]}
                active=${side.active}
                onActive=${side.setActive}
                onKeyWanted=${onKeyWanted}
                onRetry=${() => isReady() && startSide(index)}
                comparison=${compared[index]}
              >
                <div class="own">
                  ${
                    hasModels &&
                    html`
                      <${ModelSelect}
                        id=${`compare-${index}-model`}
                        models=${able}
                        value=${modelOf(index)}
                        onChange=${side.setModel}
                        mayBeAny=${false}
                      />
                    `
                  }
                  <${Form}
                    prefix=${`compare-${index}`}
                    fields=${own}
                    values=${valuesOf(index)}
                    onChange=${side.change}
                  />
                </div>
              <//>
            `,
          )}
        </div>
      </div>
    </div>
  `
}

/** One side: its model and settings, and its run about the picture. */
function useSide(picture) {
  const [model, setModel] = useState('')
  const [values, setValues] = useState({})
  const [active, setActive] = useState(null)
  const { run, start, stop } = useRuns()
  return {
    model,
    setModel,
    values,
    change: (name, value) => setValues((old) => ({ ...old, [name]: value })),
    active,
    setActive,
    run: run?.picture === picture ? run : null,
    start,
    stop,
  }
}

function VariantSelect({ variants, value, onChange }) {
  const { compare: texts } = strings
  return html`
    <div class="field">
      <label for="compare-variant">${texts.differing}</label>
      <select id="compare-variant" onChange=${(event) => onChange(event.target.value)}>
        ${variants.map(
          ({ id, label }) => html`
            <option key=${id} value=${id} selected=${id === value}>${label}</option>
          `,
        )}
      </select>
    </div>
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

function Verdict({ a, b, areDone }) {
  const { compare: texts, code } = strings
  const asJson = () =>
    JSON.stringify({ a: a ? asRecord(a) : null, b: b ? asRecord(b) : null }, null, 2)
  return html`
    <div class="card verdict">
      <p role="status">${areDone ? verdict(a, b) : texts.atOnce}</p>
      <${CopyButton} label=${texts.copy} getText=${asJson} />
    </div>
  `
}
