// The settings of live video, from the schemas of the pipelines: a new field needs no change here.

import { html } from './vendor/htm-preact.js'
import { Notice, Segmented } from './controls.js'
import { Form, readFields } from './form.js'
import { asSentence } from './server.js'
import { strings } from './strings.js'
import { ModelSelect, modelsFor } from './task_settings.js'

/** The setting that `features` in the hints of others refers to. */
const FEATURE = 'feature'
const MODEL = 'model'
/** Settings of a WebSocket that no hint names. */
const OF_SOCKET = [FEATURE, MODEL]

/**
 * @param {any} pipeline as the server describes it
 * @returns {import('./form.js').Field[]}
 */
export function pipelineFields(pipeline) {
  return readFields(pipeline?.config_schema)
}

/**
 * Return the fields that have an effect.
 * @param {import('./form.js').Field[]} fields
 * @param {Record<string, any>} values
 * @param {import('./live_session.js').LiveSession | null} session that is open
 */
export function effectiveFields(fields, values, session) {
  const feature = featureOf(fields, values)
  const isSocket = session?.kind === 'socket'
  return fields.filter(({ name, hints }) => {
    if (hints.features && !hints.features.includes(feature)) return false
    if (session && hints.is_load_param) return false
    return !isSocket || hints.request || OF_SOCKET.includes(name)
  })
}

/** @returns {string | undefined} */
export function featureOf(fields, values) {
  return values[FEATURE] ?? fields.find(({ name }) => name === FEATURE)?.default
}

/** Return what the model is asked, or looks for; empty if nothing. */
export function promptOf(fields, values) {
  const feature = featureOf(fields, values)
  const field = fields.find(
    ({ hints }) =>
      ['question', 'object'].includes(hints.request) && hints.features?.includes(feature),
  )
  return field ? String(values[field.name] ?? field.default) : ''
}

/**
 * @param {{
 *   pipelines: any,
 *   pipeline: any,
 *   fields: import('./form.js').Field[],
 *   values: Record<string, any>,
 *   health: any,
 *   session: import('./live_session.js').LiveSession | null,
 *   onPipeline: (id: string) => void,
 *   onChange: (name: string, value: any) => void,
 * }} props
 * `session` is the one that is open; null without one.
 */
export function LiveSettings({
  pipelines,
  pipeline,
  fields,
  values,
  health,
  session,
  onPipeline,
  onChange,
}) {
  const shown = effectiveFields(fields, values, session)
  const feature = shown.find(({ name }) => name === FEATURE)
  const model = shown.find(({ name }) => name === MODEL)
  const able = modelsFor(health, featureOf(fields, values))
  const form = { prefix: 'live', values, onChange }
  const isInput = ({ category }) => category === 'input'
  const others = shown.filter((field) => field !== feature && field !== model && !isInput(field))
  const problem = session?.problem?.field && session.problem
  return html`
    ${
      Object.keys(pipelines).length > 1 &&
      html`
        <${PipelineSelect}
          ...${{ pipelines, pipeline }}
          isFixed=${Boolean(session)}
          onPipeline=${onPipeline}
        />
      `
    }
    ${
      feature &&
      html`
        <${Segmented}
          name="live-feature"
          label=${strings.tasks.label}
          value=${featureOf(fields, values)}
          onChange=${(id) => onChange(FEATURE, id)}
          options=${feature.options.map((id) => ({ id, label: strings.tasks[id] ?? id }))}
        />
      `
    }
    <${Form} ...${form} fields=${shown.filter(isInput)} />
    ${
      model &&
      html`
        <${ModelSelect}
          id="live-model"
          models=${able}
          value=${able.includes(values[MODEL]) ? values[MODEL] : ''}
          onChange=${(name) => onChange(MODEL, name)}
        />
      `
    }
    ${groupsOf(others).map(
      ([name, members]) => html`
        <details class="more" key=${name}>
          <summary>${name}</summary>
          <div class="fields"><${Form} ...${form} fields=${members} /></div>
        </details>
      `,
    )}
    ${problem && html`<${Notice} kind="error"><p>${asSentence(problem.error)}</p><//>`}
  `
}

/** Return the settings by their groups; those without one come first. */
function groupsOf(fields) {
  const groups = new Map([[strings.settings.more, []]])
  for (const field of fields) {
    const name = field.hints.group ?? strings.settings.more
    groups.set(name, [...(groups.get(name) ?? []), field])
  }
  return [...groups].filter(([, members]) => members.length > 0)
}

function PipelineSelect({ pipelines, pipeline, isFixed, onPipeline }) {
  const { live } = strings
  return html`
    <div class="field">
      <label for="live-pipeline">${live.pipeline}</label>
      <select
        id="live-pipeline"
        disabled=${isFixed}
        onChange=${(event) => onPipeline(event.target.value)}
        aria-describedby="live-pipeline-hint"
      >
        ${Object.values(pipelines).map(
          ({ id, name }) => html`
            <option key=${id} value=${id} selected=${id === pipeline?.id}>${name}</option>
          `,
        )}
      </select>
      <p class="hint" id="live-pipeline-hint">${pipeline?.description}</p>
    </div>
  `
}
