// Two answers to one question: which was faster, and how their texts differ.

import { tokensPerSecond } from './run.js'
import { strings } from './strings.js'
import { isText } from './tasks.js'

/**
 * Words in a row that the other text has too, or that only this one has.
 * @typedef {{text: string, isOwn: boolean}} Word
 */

/**
 * One side of a comparison.
 * @typedef {object} Comparison
 * @property {string[]} best the figures in which it is ahead
 * @property {Word[] | null} words null if nothing is to be marked
 */

/** @type {Comparison} */
export const NO_COMPARISON = { best: [], words: null }

const FASTER = 1.05 // a smaller difference is noise
const MAX_CELLS = 1e6
const MIN_SHARED = 1 / 3

/** Less is better. */
const COSTS = {
  firstToken: (run) => run.firstMs,
  total: (run) => run.totalMs,
  speed: (run) => {
    const speed = tokensPerSecond(run)
    return speed === null ? null : 1 / speed
  },
}

/**
 * @param {import('./run.js').Run} a
 * @param {import('./run.js').Run} b both done
 * @returns {[Comparison, Comparison]}
 */
export function compare(a, b) {
  const [wordsOfA, wordsOfB] = isText(a.request.task) ? diffWords(a.text, b.text) : [null, null]
  return [
    { best: betterFigures(a, b), words: wordsOfA },
    { best: betterFigures(b, a), words: wordsOfB },
  ]
}

/**
 * Return in words which side was faster, and whether the answers are the same.
 * @param {import('./run.js').Run} a
 * @param {import('./run.js').Run} b both done
 */
export function verdict(a, b) {
  const { compare: texts, duration } = strings
  const [fast, slow] = a.totalMs <= b.totalMs ? [a, b] : [b, a]
  const ratio = slow.totalMs / fast.totalMs
  const times = [duration(fast.totalMs), duration(slow.totalMs)]
  const speed =
    ratio < FASTER ? texts.sameTime(times[0]) : texts.faster(fast === a, ratio, ...times)
  return `${speed} ${outcome(a, b)}`
}

function outcome(a, b) {
  const { compare: texts } = strings
  if (isText(a.request.task)) return a.text === b.text ? texts.sameText : texts.otherText
  return texts.counts(a.boxes.length + a.points.length, b.boxes.length + b.points.length)
}

function betterFigures(run, other) {
  return Object.keys(COSTS).filter((name) => {
    const [own, others] = [COSTS[name](run), COSTS[name](other)]
    return own !== null && others !== null && own * FASTER <= others
  })
}

/**
 * Return both texts with the words marked that the other one lacks; nulls if they are long, or
 * have little in common.
 * @param {string} a
 * @param {string} b
 * @returns {[Word[], Word[]] | [null, null]}
 */
export function diffWords(a, b) {
  const [x, y] = [a.split(/(?<=\s)/), b.split(/(?<=\s)/)]
  if (x.length * y.length > MAX_CELLS) return [null, null]
  const shared = longestCommon(x, y)
  if (shared.length < MIN_SHARED * Math.max(x.length, y.length)) return [null, null]
  const [inX, inY] = [0, 1].map((side) => new Set(shared.map((pair) => pair[side])))
  return [marked(x, inX), marked(y, inY)]
}

/** Return the places of the longest common subsequence, as pairs. */
function longestCommon(x, y) {
  const [rows, columns] = [x.length + 1, y.length + 1]
  const lengths = new Uint16Array(rows * columns)
  const isSame = (i, j) => x[i].trim() === y[j].trim()
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      lengths[i * columns + j] = isSame(i, j)
        ? lengths[(i + 1) * columns + j + 1] + 1
        : Math.max(lengths[(i + 1) * columns + j], lengths[i * columns + j + 1])
    }
  }
  const pairs = []
  for (let i = 0, j = 0; i < x.length && j < y.length;) {
    if (isSame(i, j)) pairs.push([i++, j++])
    else if (lengths[(i + 1) * columns + j] >= lengths[i * columns + j + 1]) i++
    else j++
  }
  return pairs
}

/** Return the words, with those in a row that are alike joined. */
function marked(words, shared) {
  const joined = []
  words.forEach((text, index) => {
    const isOwn = !shared.has(index)
    const last = joined.at(-1)
    if (last?.isOwn === isOwn) last.text += text
    else joined.push({ text, isOwn })
  })
  return joined
}

/**
 * Return one side for the JSON of both.
 * @param {import('./run.js').Run} run
 */
export function asRecord(run) {
  return {
    request: { path: `/${run.request.path}`, ...run.request.body },
    state: run.state,
    model: run.model,
    error: run.error?.message ?? null,
    answer: run.answer,
    first_token_ms: run.firstMs,
    tokens_per_second: tokensPerSecond(run),
    total_ms: run.totalMs,
  }
}
