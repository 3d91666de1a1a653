// Small plots of figures over time.

import { html } from './vendor/htm-preact.js'

const WIDTH = 240
const HEIGHT = 44
const MARGIN = 3

/** @typedef {(number | null)[]} OverTime */

/**
 * Lines over time, each with gaps where nothing is known. The first one counts most.
 * @param {{times: number[], lines: OverTime[], label: string, full?: number}} props
 * `label` says in words what the plot shows; `full` is the least value at its upper edge.
 */
export function Plot({ times, lines, label, full = 0 }) {
  const top = Math.max(greatest(lines.flat()) ?? 0, full) || 1
  const [begin, end] = [times[0] ?? 0, times.at(-1) ?? 0]
  const place = (value, index) => {
    const x = end > begin ? ((times[index] - begin) / (end - begin)) * WIDTH : WIDTH
    const y = HEIGHT - MARGIN - (value / top) * (HEIGHT - 2 * MARGIN)
    return `${x.toFixed(1)} ${y.toFixed(1)}`
  }
  return html`
    <svg
      class="plot"
      role="img"
      aria-label=${label}
      viewBox=${`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
    >
      <path class="base" d=${`M0 ${HEIGHT - MARGIN}H${WIDTH}`} />
      ${lines.map(
        (values, index) => html`
          <path
            key=${index}
            class=${index === 0 ? 'line' : 'line other'}
            d=${pathOf(values, place)}
          />
        `,
      )}
    </svg>
  `
}

/**
 * Return the greatest of some values; null if none is known.
 * @param {OverTime} values
 */
export function greatest(values) {
  const known = values.filter((value) => value !== null)
  return known.length > 0 ? Math.max(...known) : null
}

/** Return a path through the values that are known. One without neighbors is a dot. */
function pathOf(values, place) {
  let path = ''
  values.forEach((value, index) => {
    if (value === null) return
    const here = place(value, index)
    const isFirst = (values[index - 1] ?? null) === null
    path += isFirst ? `M${here}` : `L${here}`
    if (isFirst && (values[index + 1] ?? null) === null) path += 'h0.01'
  })
  return path
}
