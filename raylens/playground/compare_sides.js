// The two sides of a comparison: what they differ in, and the model, settings and run of each.

import { useState } from './vendor/htm-preact.js'
import { isOld, newRun } from './run.js'
import { useRuns } from './runs.js'
import { abilitiesOf } from './task_settings.js'
import { buildRequest, fieldsOf } from './tasks.js'
import { ALL, contrastOf, MODEL, settingsOf, variantsOf } from './variants.js'

/**
 * @param {import('./task_settings.js').Known} known
 * @param {import('./pictures.js').Picture | null} picture
 * @param {ReturnType<typeof import('./task_settings.js').useTaskSettings>} settings those that
 * both sides share
 */
export function useSides(known, picture, settings) {
  const { task, able, chosen, allFields, fields, values, current } = settings
  const [wanted, setVariant] = useState('')
  const variants = variantsOf(able, fields)
  const variant = variants.some(({ id }) => id === wanted) ? wanted : variants[0].id
  const own = settingsOf(fields).filter(({ name }) => variant === ALL || name === variant)
  const hasModels = variant === MODEL || variant === ALL

  /** Return a side, with defaults that make a difference. */
  const complete = (state, index) => {
    const usual = able[index] ?? able[0] ?? ''
    const model = hasModels ? (able.includes(state.model) ? state.model : usual) : chosen
    const defaultOf = (field) =>
      index === 1 && variant !== ALL ? contrastOf(field) : (values[field.name] ?? field.default)
    const ownValues = Object.fromEntries(
      own.map((field) => [field.name, state.values[field.name] ?? defaultOf(field)]),
    )
    const asked = fieldsOf(allFields, task, abilitiesOf(known.health, model))
    const allValues = { ...values, ...ownValues }
    const request = buildRequest(task, model, asked, allValues)
    const choice = { task, model: hasModels ? model : current.model, values: allValues }
    return {
      ...state,
      model,
      answering: model || able[0] || '',
      values: ownValues,
      isOld: isOld(state.run, allFields, choice),
      start: () => state.start(newRun(request, picture, choice)),
    }
  }
  const sides = [useSide(picture), useSide(picture)].map(complete)
  return { sides, variants, variant, setVariant, own, hasModels }
}

/** What the user has chosen for a side, and its run about the picture. */
function useSide(picture) {
  const [model, setModel] = useState('')
  const [values, setValues] = useState({})
  const [active, setActive] = useState(null)
  const { run, start, stop } = useRuns(picture, 1)
  const change = (name, value) => setValues((old) => ({ ...old, [name]: value }))
  return { model, setModel, values, change, active, setActive, run, start, stop }
}
