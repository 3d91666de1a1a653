// What a job shows of itself: its picture, what was asked, and the answer, whatever its type.

import { asFinding } from './overlay.js'
import { asSentence } from './server.js'
import { strings } from './strings.js'

/** @typedef {import('./job_list.js').Job} Job */

export const STATES = ['queued', 'running', 'succeeded', 'failed', 'canceled']
const REFERENCE = 'blob:'

/** @param {Job} job */
export function isEnded({ status }) {
  return status !== 'queued' && status !== 'running'
}

/** @param {Job} job @returns {Record<'retry' | 'cancel' | 'remove', boolean>} what can be done */
export function abilitiesOf(job) {
  return {
    retry: job.status === 'failed' || job.status === 'canceled',
    cancel: !isEnded(job),
    remove: isEnded(job),
  }
}

/** @param {Job} job the path of the file that was submitted; empty if that isn't known */
export function fileOf({ query }) {
  return typeof query?.file === 'string' ? query.file : ''
}

/** @param {Job} job what a person calls it */
export function nameOf(job) {
  return fileOf(job).split('/').pop() || strings.jobs.unnamed(job.job_type, job.id.slice(-6))
}

/** @param {Job} job the question, or what is looked for; empty if there is none */
export function promptOf({ input = {} }) {
  const prompt = input.question ?? input.object ?? input.prompt ?? input.objects ?? input.tasks
  if (prompt !== undefined) return [prompt].flat().filter(isText).join(', ')
  const last = input.messages?.at(-1)?.content
  return [last].flat().map((part) => part?.text ?? part).filter(isText).join(' ')
}

const isText = (value) => typeof value === 'string'

/** @param {Job} job the model that answered, or that was asked for; empty if that isn't known */
export function modelOf({ output, input }) {
  return output?.model ?? input?.model ?? ''
}

/** @param {Job} job the digest of its first picture; empty if it has none */
export function pictureOf({ input = {} }) {
  const first = input.image ?? input.images?.[0]?.image ?? input.images?.[0]
  return isText(first) && first.startsWith(REFERENCE) ? first.slice(REFERENCE.length) : ''
}

/** @param {Job} job the answer as text; empty before there is one */
export function answerOf(job) {
  const { output } = job
  if (!output) return ''
  const text = output.caption ?? output.answer ?? output.summary
  if (isText(text)) return text
  const found = output.objects ?? output.points
  if (found) return strings.result.found(found.length, promptOf(job))
  if (output.results) return strings.jobs.results(output.results.length, output.failed ?? 0)
  return JSON.stringify(output)
}

/** @param {Job} job the boxes or points that were found; null if it looked for none */
export function placesOf({ output }) {
  return output?.objects ?? output?.points ?? null
}

/** @param {Job} job @returns {import('./overlay.js').Finding[]} */
export function findingsOf(job) {
  const prompt = promptOf(job)
  const labelOf = ({ label }, index) => strings.result.finding(label ?? prompt, index + 1)
  return (placesOf(job) ?? []).map((place, index) => asFinding(labelOf(place, index), place))
}

/** @param {Job} job why it failed, or waits; empty if it does neither */
export function errorOf({ error, status, next_attempt_at }) {
  if (!error) return ''
  const sentence = asSentence(error.message.replace(/^input\.\w+: /, ''))
  return status === 'queued' && next_attempt_at
    ? strings.jobs.waits(sentence, strings.time(next_attempt_at))
    : sentence
}

/** @param {Job} job how long it ran; null if it has not run to its end */
export function durationOf({ status, started_at, finished_at }) {
  if (status === 'canceled' || !started_at || !finished_at) return null
  return Date.parse(finished_at) - Date.parse(started_at)
}

/**
 * @typedef {{state: string, type: string, model: string, text: string}} Filter
 * An empty value means any.
 */

/** @type {Filter} */
export const NO_FILTER = { state: '', type: '', model: '', text: '' }

/**
 * @param {Job[]} jobs
 * @param {Filter} filter its text is found as it is, but for quotes around it, and case
 */
export function filterJobs(jobs, { state, type, model, text }) {
  const wanted = text.trim().replace(/^["“]|["”]$/g, '').toLowerCase()
  return jobs.filter((job) => {
    if (state && job.status !== state) return false
    if (type && job.job_type !== type) return false
    if (model && modelOf(job) !== model) return false
    const shown = [fileOf(job), job.id, promptOf(job), answerOf(job), errorOf(job)]
    return shown.some((part) => part.toLowerCase().includes(wanted))
  })
}
