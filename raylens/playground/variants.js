// What two sides of a comparison differ in: the model, one setting, or all of them.

import { strings } from './strings.js'
import { promptOf } from './tasks.js'

export const MODEL = 'model'
export const ALL = 'all'

/**
 * Return what may differ, the most useful first.
 * @param {string[]} models
 * @param {import('./form.js').Field[]} fields those of the task
 * @returns {{id: string, label: string}[]}
 */
export function variantsOf(models, fields) {
  const { compare, settings } = strings
  const model = { id: MODEL, label: settings.model }
  const others = settingsOf(fields)
    .map(({ name, label }) => ({ id: name, label }))
    .sort((one, other) => (other.id === 'recipe') - (one.id === 'recipe'))
  return [...(models.length > 1 ? [model] : []), ...others, { id: ALL, label: compare.several }]
}

/** @param {import('./form.js').Field[]} fields */
export function settingsOf(fields) {
  const prompt = promptOf(fields)
  return fields.filter((field) => field !== prompt)
}

/**
 * Return a value that shows what a setting does, beside its default.
 * @param {import('./form.js').Field} field
 */
export function contrastOf({ kind, options, min, max, step, default: usual }) {
  if (kind === 'toggle') return !usual
  if (kind === 'select') return options.findLast((option) => option !== usual) ?? usual
  if (kind !== 'slider') return usual
  const middle = (min + max) / 2
  const rounded = typeof step === 'number' ? Math.round(middle / step) * step : middle
  return rounded === usual ? max : Number(rounded.toFixed(6))
}
