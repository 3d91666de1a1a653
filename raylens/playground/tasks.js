// What can be asked about a picture, and the request that asks it, in Moondream's dialect.

import { readFields } from './form.js'
import { toDataUrl } from './pictures.js'

/** @typedef {'caption' | 'query' | 'detect' | 'point' | 'chat'} Task */

/** @type {Task[]} those about one picture */
export const TASKS = ['caption', 'query', 'detect', 'point']

/**
 * A request without its picture.
 * @typedef {{task: Task, path: string, body: any, prompt: string}} Request
 */

/** @param {Task} task whether its answer is text, which streams */
export function isText(task) {
  return task !== 'detect' && task !== 'point'
}

/**
 * Return the settings of requests: those of the built-in pipeline, of the server, and of plugins. Of
 * several with one name, or for one field of the body, the first counts.
 * @param {any} schemas
 * @param {any} server
 * @returns {import('./form.js').Field[]}
 */
export function readSettings(schemas, server) {
  const { moondream, ...others } = schemas?.pipelines ?? {}
  const fields = [
    ...readFields(moondream?.config_schema, server?.defaults),
    ...readFields(server?.request_schema),
    ...Object.values(others).flatMap(({ config_schema: schema }) => readFields(schema)),
  ].filter(({ hints }) => typeof hints.request === 'string')
  return fields.filter(
    ({ name, hints }, index) =>
      index === fields.findIndex((one) => one.name === name || one.hints.request === hints.request),
  )
}

/**
 * Return the fields of a task, for a model that is able to do `abilities`.
 * @param {import('./form.js').Field[]} fields
 * @param {Task} task
 * @param {string[]} abilities
 */
export function fieldsOf(fields, task, abilities) {
  return fields.filter(
    ({ hints }) =>
      isOfTask(hints, task) && (!hints.capability || abilities.includes(hints.capability)),
  )
}

const isOfTask = ({ features }, task) => !features || features.includes(task)

/**
 * Return the field of a task that must be filled in; undefined if there is none.
 * @param {import('./form.js').Field[]} fields
 */
export function promptOf(fields) {
  return fields.find(({ hints }) => hints.request === 'question' || hints.request === 'object')
}

/**
 * Return a request. Settings that are the server's defaults are left out.
 * @param {Task} task
 * @param {string} model empty leaves the choice to the server
 * @param {import('./form.js').Field[]} fields those of the task
 * @param {Record<string, any>} values
 * @returns {Request}
 */
export function buildRequest(task, model, fields, values) {
  const prompt = promptOf(fields)
  const body = changedSettings(fields, values, ({ hints }) => hints.request)
  if (prompt) setAt(body, prompt.hints.request, values[prompt.name] ?? prompt.default)
  if (model) body.model = model
  if (isText(task)) Object.assign(body, { stream: true, stream_options: { include_usage: true } })
  return { task, path: `v1/${task}`, body, prompt: prompt ? body[prompt.hints.request] : '' }
}

/**
 * What a user has chosen.
 * @typedef {{task: Task, model: string, values: Record<string, any>}} Choice
 */

/**
 * Whether two choices ask the same, whatever the server's models can do at the moment.
 * @param {import('./form.js').Field[]} fields all of them
 * @param {Choice} one
 * @param {Choice} other
 */
export function asksTheSame(fields, one, other) {
  const [first, second] = [one, other].map(({ task, model, values }) => {
    const asked = fields.filter(({ hints }) => isOfTask(hints, task))
    return JSON.stringify(buildRequest(task, model, asked, values))
  })
  return first === second
}

/**
 * Return a body with the settings that are not the server's defaults.
 * @param {import('./form.js').Field[]} fields
 * @param {Record<string, any>} values
 * @param {(field: import('./form.js').Field) => string} nameOf a field in the body
 */
export function changedSettings(fields, values, nameOf) {
  const body = {}
  for (const field of fields) {
    const value = values[field.name] ?? field.default
    if (value !== field.default) setAt(body, nameOf(field), value)
  }
  return body
}

/** Set what a dotted name such as "settings.top_p" refers to. */
function setAt(body, name, value) {
  const parts = name.split('.')
  const last = parts.pop()
  const target = parts.reduce((object, part) => (object[part] ??= {}), body)
  target[last] = value
}

/**
 * Return a request's body with its picture.
 * @param {any} body
 * @param {import('./pictures.js').Picture} picture
 */
export async function withPicture(body, picture) {
  return { image_url: picture.address ?? (await toDataUrl(picture.blob)), ...body }
}
