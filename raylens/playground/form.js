// Forms rendered from a JSON schema with `ui` hints: a new field needs no change of the page.

import { html, useState } from './vendor/htm-preact.js'
import { strings } from './strings.js'

const LONG_TEXT = 400
const STEPS = 100

/**
 * A setting, read from a schema.
 * @typedef {object} Field
 * @property {string} name
 * @property {string} label
 * @property {string} description
 * @property {'toggle' | 'select' | 'slider' | 'number' | 'text' | 'textarea'} kind
 * @property {any} default
 * @property {any[]} [options]
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step]
 * @property {number} [maxLength]
 * @property {number} order
 * @property {string} category
 * @property {any} hints all hints of the schema
 */

/**
 * Return the fields of a schema that have hints, in their order.
 * @param {any} schema
 * @param {Record<string, any>} defaults values that replace the schema's
 * @returns {Field[]}
 */
export function readFields(schema, defaults = {}) {
  const fields = Object.entries(schema?.properties ?? {})
    .map(([name, property]) => readField(name, resolve(property, schema), defaults))
    .filter((field) => field !== null)
  return fields.sort((a, b) => a.order - b.order)
}

/** @returns {Field | null} */
function readField(name, property, defaults) {
  const hints = property.ui
  if (!hints || hints.hidden) return null
  const options = property.enum ?? (property.const === undefined ? undefined : [property.const])
  const [min, max] = [
    property.minimum ?? above(property.exclusiveMinimum),
    property.maximum ?? below(property.exclusiveMaximum),
  ]
  return {
    name,
    label: hints.label ?? property.title ?? name,
    description: property.description ?? '',
    kind: kindOf(property, options, min, max),
    default: defaults[name] ?? property.default,
    options,
    min,
    max,
    step:
      property.multipleOf ?? hints.step ?? (property.type === 'integer' ? 1 : fineStep(min, max)),
    maxLength: property.maxLength,
    order: hints.order ?? Number.MAX_SAFE_INTEGER,
    category: hints.category ?? 'configuration',
    hints,
  }
}

const EPSILON = 1e-6
const above = (bound) => (bound === undefined ? undefined : bound + EPSILON)
const below = (bound) => (bound === undefined ? undefined : bound - EPSILON)

/** Return a round step that divides the range into about a hundred. */
function fineStep(min, max) {
  if (min === undefined || max === undefined) return 'any'
  return 10 ** Math.floor(Math.log10((max - min) / STEPS))
}

function kindOf(property, options, min, max) {
  if (options) return 'select'
  if (property.type === 'boolean') return 'toggle'
  if (property.type === 'number' || property.type === 'integer') {
    return min === undefined || max === undefined ? 'number' : 'slider'
  }
  return (property.maxLength ?? 0) > LONG_TEXT ? 'textarea' : 'text'
}

/** Return a property with what it refers to; of alternatives, the first that is not null. */
function resolve(property, schema) {
  let found = property
  if (found.$ref) {
    const target = found.$ref
      .split('/')
      .slice(1)
      .reduce((value, part) => value?.[part], schema)
    found = { ...resolve(target ?? {}, schema), ...found }
  }
  const alternatives = found.allOf ?? found.anyOf ?? found.oneOf
  if (alternatives) {
    const first = alternatives.find((option) => option.type !== 'null') ?? {}
    found = { ...resolve(first, schema), ...found }
  }
  return found
}

/**
 * The controls of fields. `values` has those that were changed; `prefix` is that of their ids.
 * @param {{
 *   prefix?: string,
 *   fields: Field[],
 *   values: Record<string, any>,
 *   onChange: (name: string, value: any) => void,
 * }} props
 */
export function Form({ prefix = 'field', fields, values, onChange }) {
  return fields.map((field) => {
    const value = values[field.name] ?? field.default
    return html`
      <${Control}
        key=${field.name}
        id=${`${prefix}-${field.name}`}
        field=${field}
        value=${value}
        onChange=${(next) => onChange(field.name, next)}
      />
    `
  })
}

function Control({ id, field, value, onChange }) {
  const hint = `${id}-hint`
  const common = { id, name: field.name, 'aria-describedby': field.description ? hint : undefined }
  const description =
    field.description &&
    html`
      <p class="hint" id=${hint}>${field.description}</p>
    `
  if (field.kind === 'toggle') {
    return html`
      <div class="field toggle">
        <input
          type="checkbox"
          role="switch"
          ...${common}
          checked=${Boolean(value)}
          onChange=${(event) => onChange(event.target.checked)}
        />
        <label for=${id}>${field.label}</label>
        ${description}
      </div>
    `
  }
  return html`
    <div class="field ${field.kind}">
      <label for=${id}>${field.label}</label>
      ${inputOf(field, value, common, onChange)} ${description}
    </div>
  `
}

function inputOf(field, value, common, onChange) {
  if (field.kind === 'select') {
    return html`
      <select
        ...${common}
        onChange=${(event) => onChange(field.options[event.target.selectedIndex])}
      >
        ${field.options.map(
          (option) => html`
            <option key=${option} value=${option} selected=${option === value}>
              ${option === '' ? strings.settings.choiceDefault : String(option)}
            </option>
          `,
        )}
      </select>
    `
  }
  const onNumber = (event) => {
    if (event.target.value !== '' && event.target.validity.valid)
      onChange(event.target.valueAsNumber)
  }
  const bounds = { min: field.min, max: field.max, step: field.step }
  if (field.kind === 'slider') {
    return html`
      <div class="pair">
        <input type="range" ...${common} ...${bounds} value=${value} onInput=${onNumber} />
        <${NumberInput}
          class="number"
          ...${bounds}
          value=${value}
          onNumber=${onNumber}
          aria-label=${strings.settings.valueOf(field.label)}
        />
      </div>
    `
  }
  if (field.kind === 'number') {
    return html`
      <${NumberInput} ...${common} ...${bounds} value=${value} onNumber=${onNumber} />
    `
  }
  const text = {
    ...common,
    maxlength: field.maxLength,
    value: value ?? '',
    onInput: (event) => onChange(event.target.value),
  }
  if (field.kind === 'textarea')
    return html`
      <textarea rows="2" ...${text}></textarea>
    `
  return html`
    <input type="text" autocomplete="off" ...${text} />
  `
}

/** Keeps what is typed until it is entered: a render meanwhile, as for a live result, would undo it. */
function NumberInput({ value, onNumber, ...attributes }) {
  const [typed, setTyped] = useState(null)
  return html`
    <input
      type="number"
      ...${attributes}
      value=${typed ?? value}
      onInput=${(event) => setTyped(event.target.value)}
      onChange=${onNumber}
      onBlur=${() => setTyped(null)}
    />
  `
}
