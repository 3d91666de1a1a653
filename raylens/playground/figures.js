// Figures of the status: a name, the newest value, and a plot.

import { html } from './vendor/htm-preact.js'
import { greatest, Plot } from './plot.js'
import { strings } from './strings.js'

/**
 * How a figure is shown.
 * @typedef {object} Figure
 * @property {string} id its name in the server's answer
 * @property {string} [other] the name of a second line, the time that 95% stay within
 * @property {(value: number) => string} format
 * @property {number} [full] the value that fills the plot, unless there was a greater one
 * @property {(context: any) => string} [about] says more than the newest value
 */

const { rate, mean, share, count, seconds, memory } = strings.status

/** @type {Figure[]} */
const TRAFFIC = [
  { id: 'requests_per_s', format: rate, about: ({ totals }) => strings.status.requests(totals) },
  { id: 'errors_per_s', format: rate, about: ({ totals }) => strings.status.errors(totals) },
  { id: 'latency_p50_s', other: 'latency_p95_s', format: seconds },
  { id: 'first_token_p50_s', other: 'first_token_p95_s', format: seconds },
  { id: 'tokens_per_s', format: rate, about: ({ totals }) => strings.status.tokens(totals) },
]

/** @type {Figure[]} */
export const SERVER_FIGURES = [
  ...TRAFFIC,
  { id: 'in_flight', format: count, about: ({ limit }) => strings.status.perClient(limit) },
  { id: 'pictures_waiting', format: count },
  { id: 'sessions', format: count },
]

/** @type {Figure[]} */
export const MODEL_FIGURES = [
  ...TRAFFIC,
  { id: 'running', format: count, about: ({ slots }) => strings.status.slots(slots) },
  { id: 'waiting', format: count, about: ({ limit }) => strings.status.perClient(limit) },
  { id: 'batch_size', format: mean },
  { id: 'load', format: share, full: 1 },
  { id: 'kv_cache', format: share, full: 1 },
  { id: 'picture_hits', format: share, full: 1 },
  { id: 'prefix_hits', format: share, full: 1 },
  {
    id: 'memory_bytes',
    format: memory,
    about: ({ series }) => strings.status.ofShare(series.memory_share_bytes.at(-1)),
  },
]

/** @type {Figure[]} */
export const JOB_FIGURES = [
  {
    id: 'queued',
    format: count,
    about: ({ series }) => strings.status.oldest(series.oldest_wait_s.at(-1)),
  },
  { id: 'running', format: count },
  { id: 'ended_per_s', format: rate, about: ({ totals }) => strings.status.ended(totals) },
  { id: 'failed', format: count, about: () => strings.status.listed },
]

/**
 * @param {{
 *   figures: Figure[],
 *   names: Record<string, string>,
 *   times: number[],
 *   series: Record<string, import('./plot.js').OverTime>,
 *   context?: any,
 * }} props
 * Figures of which nothing is known are left out.
 */
export function Figures({ figures, names, times, series, context = {} }) {
  const known = figures.filter(({ id }) => series[id].some((value) => value !== null))
  return html`
    <ul class="tiles">
      ${known.map(
        (figure) => html`
          <${Tile}
            key=${figure.id}
            figure=${figure}
            name=${names[figure.id]}
            ...${{ times, series, context }}
          />
        `,
      )}
    </ul>
  `
}

function Tile({ figure, name, times, series, context }) {
  const { status } = strings
  const values = series[figure.id]
  const lines = figure.other ? [values, series[figure.other]] : [values]
  const newest = values.at(-1)
  const shown = newest === null ? status.unknown : figure.format(newest)
  const peak = greatest(lines.flat())
  const label = status.plot(name, shown, figure.format(peak))
  const about = figure.about?.({ ...context, series }) ?? ''
  return html`
    <li class="tile" data-figure=${figure.id}>
      <p class="name">${name}</p>
      <p class="value">
        ${shown}
        ${
          peak > 0 &&
          html`
            <span class="peak" aria-hidden="true">${status.peak(figure.format(peak))}</span>
          `
        }
      </p>
      <${Plot} ...${{ times, lines, label }} full=${figure.full} />
      <p class="hint">${figure.other ? html`<${Legend} slower=${lines[1].at(-1)} />` : about}</p>
    </li>
  `
}

/** What the two lines of a plot are. @param {{slower: number | null}} props */
function Legend({ slower }) {
  const { status } = strings
  return html`
    <span class="legend">${status.median}</span>
    <span class="legend other">${status.within(slower)}</span>
  `
}
