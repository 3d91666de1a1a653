// A conversation: questions with pictures and videos, and their answers.

import { useRef, useState } from './vendor/htm-preact.js'
import { urlOf } from './attachments.js'
import { newRun, perform } from './run.js'
import { useFrames } from './runs.js'

/**
 * A question without its answer.
 * @typedef {{text: string, attachments: import('./attachments.js').Attachment[]}} Question
 */

/**
 * A question and its answer.
 * @typedef {{id: number, question: Question, run: import('./run.js').Run}} Turn
 */

/**
 * The settings of a conversation, as fields of a request.
 * @typedef {{system: string, body: any}} Settings
 */

const PATH = 'v1/chat/completions'
const STREAM = { stream: true, stream_options: { include_usage: true } }

/**
 * The turns of a conversation, and those before the last new chat. Tokens that arrive are shown
 * once per frame.
 */
export function useConversation() {
  const [turns, setTurns] = useState([])
  const [previous, setPrevious] = useState([])
  const abort = useRef(null)
  const update = useFrames()

  /** Ask, after the turns of `earlier`, which replace those so far. */
  const ask = (earlier, question, settings) => {
    stop()
    abort.current = new AbortController()
    const run = newRun(buildChat(earlier, question, settings), null)
    setTurns([...earlier, { id: run.id, question, run }])
    perform(run, withUrls(run.request), abort.current.signal, update)
  }
  const stop = () => abort.current?.abort()
  const clear = () => {
    stop()
    setPrevious(turns)
    setTurns([])
  }
  const isWorking = turns.at(-1)?.run.state === 'working'
  const restore = previous.length > 0 ? () => setTurns(previous) : null
  return { turns, isWorking, ask, stop, clear, restore }
}

/** @param {Turn} turn whether later requests contain it: a failed one may fail them, too */
export const isKept = ({ run }) => run.text !== ''

/**
 * Return the request that asks `question` after the turns of `earlier`. Its messages have the
 * attachments in place of URLs.
 * @param {Turn[]} earlier
 * @param {Question} question
 * @param {Settings} settings
 */
export function buildChat(earlier, question, { system, body }) {
  const messages = earlier
    .filter(isKept)
    .flatMap((turn) => [asMessage(turn.question), { role: 'assistant', content: turn.run.text }])
  if (system.trim()) messages.unshift({ role: 'system', content: system })
  messages.push(asMessage(question))
  return { task: 'chat', path: PATH, prompt: question.text, messages, body: { ...body, ...STREAM } }
}

/** @param {Question} question */
function asMessage({ text, attachments }) {
  if (attachments.length === 0) return { role: 'user', content: text }
  const media = attachments.map((file) => ({
    type: file.kind === 'video' ? 'video_url' : 'image_url',
    file,
  }))
  return { role: 'user', content: [...media, ...(text ? [{ type: 'text', text }] : [])] }
}

/**
 * Return a request's body with `toUrl` of each attachment.
 * @param {any} request
 * @param {(file: import('./attachments.js').Attachment) => string} toUrl
 */
export function bodyOf({ messages, body }, toUrl) {
  const fill = (part) =>
    part.file ? { type: part.type, [part.type]: { url: toUrl(part.file) } } : part
  const filled = messages.map(({ role, content }) => ({
    role,
    content: Array.isArray(content) ? content.map(fill) : content,
  }))
  return { ...body, messages: filled }
}

/** @returns {import('./attachments.js').Attachment[]} those of a request, in their order */
export function filesOf({ messages }) {
  return messages
    .flatMap(({ content }) => (Array.isArray(content) ? content : []))
    .map(({ file }) => file)
    .filter(Boolean)
}

/** Return a request's body with its pictures and videos. */
export async function withUrls(request) {
  const urls = new Map()
  for (const file of filesOf(request)) urls.set(file, await urlOf(file))
  return bodyOf(request, (file) => urls.get(file))
}
