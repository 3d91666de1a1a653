// One request and its answer, as it arrives.

import { isAway, patiently } from './patience.js'
import { asSentence, eventsOf, send, ServerError } from './server.js'
import { strings } from './strings.js'
import { asksTheSame, isText } from './tasks.js'

/**
 * @typedef {object} Box
 * @property {number} x_min fractions of the picture
 * @property {number} y_min
 * @property {number} x_max
 * @property {number} y_max
 */

/**
 * @typedef {object} Run
 * @property {number} id
 * @property {import('./tasks.js').Request} request
 * @property {import('./pictures.js').Picture | null} picture null for a chat
 * @property {import('./tasks.js').Choice | null} settings of the form that made the request; null
 * for a chat
 * @property {'working' | 'done' | 'failed' | 'stopped'} state
 * @property {string} text
 * @property {string} reasoning
 * @property {{start_idx: number, end_idx: number, points: [number, number][]}[]} grounding
 * what parts of the reasoning, in characters, are about
 * @property {Box[]} boxes
 * @property {{x: number, y: number}[]} points
 * @property {string[]} warnings
 * @property {string} model that answered
 * @property {any} answer as the server sent it; for a stream, its events
 * @property {ServerError | null} trouble that is waited out
 * @property {ServerError | null} error
 * @property {number | null} firstMs until the first token
 * @property {number | null} lastMs until the last one
 * @property {number | null} totalMs
 * @property {number} pieces parts of the answer so far
 * @property {boolean} isComplete
 * @property {boolean} isCut whether the answer ends at the limit of its tokens
 * @property {{prompt_tokens: number, completion_tokens: number} | null} usage
 */

const MIN_RATE_MS = 50

let count = 0

/**
 * @param {import('./tasks.js').Request} request
 * @param {import('./pictures.js').Picture | null} picture
 * @param {Run['settings']} settings
 * @returns {Run}
 */
export function newRun(request, picture, settings = null) {
  return {
    id: ++count,
    request,
    picture,
    settings,
    state: 'working',
    text: '',
    reasoning: '',
    grounding: [],
    boxes: [],
    points: [],
    warnings: [],
    model: '',
    answer: null,
    trouble: null,
    error: null,
    firstMs: null,
    lastMs: null,
    totalMs: null,
    pieces: 0,
    isComplete: false,
    isCut: false,
    usage: null,
  }
}

/**
 * Whether there is an answer, and something else has been chosen since.
 * @param {Run | null} run
 * @param {import('./form.js').Field[]} fields all of them
 * @param {import('./tasks.js').Choice} choice the present one
 */
export function isOld(run, fields, choice) {
  const hasAnswer = run?.text || run?.boxes.length || run?.points.length
  return Boolean(hasAnswer) && !asksTheSame(fields, run.settings, choice)
}

/**
 * Send a request, again if the server is away, and call `onChange` whenever there is more of the
 * answer. `run` changes in place.
 * @param {Run} run
 * @param {Promise<any>} json the request's body, with its pictures
 * @param {AbortSignal} signal
 * @param {() => void} onChange
 */
export async function perform(run, json, signal, onChange) {
  let started = performance.now()
  const elapsed = () => performance.now() - started
  const note = (trouble) => {
    run.trouble = trouble
    onChange()
  }
  try {
    const body = await json
    const attempt = () => {
      started = performance.now()
      return send(run.request.path, { json: body, signal })
    }
    const response = await patiently(attempt, signal, note, isAway)
    note(null)
    run.model = response.headers.get('X-Raylens-Model') ?? ''
    if (isText(run.request.task)) await readText(run, response, elapsed, onChange)
    else readFindings(run, await response.json())
    run.state = 'done'
  } catch (error) {
    run.state = error.name === 'AbortError' ? 'stopped' : 'failed'
    if (run.state === 'failed')
      run.error = error instanceof ServerError ? error : new ServerError(strings.errors.unexpected)
  }
  run.totalMs = elapsed()
  onChange()
}

async function readText(run, response, elapsed, onChange) {
  const readEvent = run.request.task === 'chat' ? readChunk : readPiece
  run.answer = []
  for await (const event of eventsOf(response)) {
    run.answer.push(event)
    const text = readEvent(run, event)
    if (text) {
      run.firstMs ??= elapsed()
      run.lastMs = elapsed()
      run.text += text
      run.pieces += 1
    }
    onChange()
  }
  if (!run.isComplete) throw new ServerError(strings.errors.interrupted)
}

/** Note what an event of Moondream's dialect says. Return its text. */
function readPiece(run, event) {
  if (event.completed) {
    run.isComplete = true
    run.reasoning = event.reasoning?.text ?? ''
    run.grounding = event.reasoning?.grounding ?? []
    run.usage = event.usage ?? null
    noteWarnings(run, event)
  }
  return event.chunk
}

/** Note what an event of OpenAI's chat completions says. Return its text. */
function readChunk(run, event) {
  const { delta, finish_reason: reason } = event.choices[0] ?? {}
  run.isComplete ||= Boolean(reason)
  run.isCut ||= reason === 'length'
  if (delta?.reasoning) {
    run.reasoning = delta.reasoning
    run.grounding = delta.reasoning_details?.grounding ?? []
  }
  run.usage ??= event.usage ?? null
  if (event.warnings) noteWarnings(run, event)
  return delta?.content
}

function readFindings(run, answer) {
  run.answer = answer
  run.boxes = answer.objects ?? []
  run.points = answer.points ?? []
  noteWarnings(run, answer)
}

function noteWarnings(run, answer) {
  run.warnings = (answer.warnings ?? []).map(asSentence)
}

/**
 * Return the rate after the first token; null if the answer took too short a time to tell.
 * @param {Run} run
 */
export function tokensPerSecond(run) {
  const tokens = run.usage?.completion_tokens ?? run.pieces
  if (tokens < 2 || run.lastMs === null || run.lastMs - run.firstMs < MIN_RATE_MS) return null
  return (tokens - 1) / ((run.lastMs - run.firstMs) / 1000)
}
