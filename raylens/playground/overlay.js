// A picture with boxes and points over it. Hover and focus name them.

import { html } from './vendor/htm-preact.js'
import { strings } from './strings.js'

const percent = (fraction) => `${(100 * fraction).toFixed(3)}%`
const round = (fraction) => Math.round(1000 * fraction) / 10

/**
 * Something that was found: a box if it has a width, or else a point. In fractions of the picture.
 * @typedef {object} Finding
 * @property {string} name
 * @property {number} x
 * @property {number} y
 * @property {number} width
 * @property {number} height
 * @property {boolean} isPoint
 */

/**
 * @param {import('./run.js').Run} run
 * @returns {Finding[]}
 */
export function findingsOf(run) {
  const name = (index) => strings.result.finding(run.request.prompt, index + 1)
  const boxes = run.boxes.map((box, index) => asFinding(name(index), box))
  const points = run.points.map((point, index) => asFinding(name(index), point))
  const grounded = groundedParts(run).flatMap(({ text, points: places }) =>
    places.map(([x, y]) => asFinding(text.trim() || strings.result.reasoning, { x, y })),
  )
  return [...boxes, ...points, ...grounded]
}

/**
 * @param {string} name
 * @param {any} place a box or a point as the server has it
 * @returns {Finding}
 */
export function asFinding(name, { x, y, x_min, y_min, x_max, y_max }) {
  if (x !== undefined) return { name, x, y, width: 0, height: 0, isPoint: true }
  const [width, height] = [x_max - x_min, y_max - y_min]
  return { name, x: x_min, y: y_min, width, height, isPoint: false }
}

/**
 * Return the reasoning in parts. `first` is the finding that a part begins with, if it has points.
 * @param {import('./run.js').Run} run
 * @returns {{text: string, points: [number, number][], first: number}[]}
 */
export function groundedParts({ reasoning, grounding }) {
  const characters = [...reasoning] // positions count characters, not UTF-16 units
  const parts = []
  let [end, first] = [0, 0]
  const add = (until, points) => {
    const text = characters.slice(end, until).join('')
    if (text || points.length > 0) parts.push({ text, points, first })
    end = Math.max(end, until)
    first += points.length
  }
  for (const { start_idx, end_idx, points } of grounding) {
    add(start_idx, [])
    add(end_idx, points)
  }
  add(characters.length, [])
  return parts
}

/** @param {Finding} finding */
export function placeOf({ x, y, width, height, isPoint }) {
  const place = { left: round(x), top: round(y), width: round(width), height: round(height) }
  return isPoint ? strings.result.pointAt(place) : strings.result.boxAt(place)
}

/**
 * @param {{
 *   picture: import('./pictures.js').Picture,
 *   findings: Finding[],
 *   active: number | null,
 *   onActive: (index: number | null) => void,
 * }} props
 */
export function PictureWithFindings({ picture, findings, active, onActive }) {
  const ratio = picture.width / picture.height
  return html`
    <div class="frame" style=${{ '--ratio': ratio }}>
      <img
        src=${picture.view}
        alt=${strings.picture.alt(picture.name)}
        width=${picture.width}
        height=${picture.height}
      />
      <${Marks} ...${{ findings, active, onActive }} />
    </div>
  `
}

/**
 * What was found, over a picture that fills the parent.
 * @param {{
 *   findings: Finding[],
 *   active: number | null,
 *   onActive: (index: number | null) => void,
 * }} props
 */
export function Marks({ findings, active, onActive }) {
  // Small boxes lie over large ones, so that the pointer reaches each.
  const order = findings
    .map((finding, index) => index)
    .sort((a, b) => area(findings[b]) - area(findings[a]))
  return order.map(
    (index) => html`
      <${Mark}
        key=${index}
        finding=${findings[index]}
        isActive=${active === index}
        onEnter=${() => onActive(index)}
        onLeave=${() => onActive(null)}
      />
    `,
  )
}

const area = ({ width, height }) => width * height

function Mark({ finding, isActive, onEnter, onLeave }) {
  const { name, x, y, width, height, isPoint } = finding
  const style = {
    left: percent(x),
    top: percent(y),
    ...(isPoint ? {} : { width: percent(width), height: percent(height) }),
  }
  const classes = [
    'mark',
    isPoint ? 'point' : 'box',
    isActive && 'active',
    y < 0.1 && 'at-top',
    y < 0.1 && y + height > 0.9 && 'whole', // its label has no room but within
    x > 0.75 && 'at-right',
  ]
  return html`
    <button
      type="button"
      class=${classes.filter(Boolean).join(' ')}
      style=${style}
      aria-label=${`${name}: ${placeOf(finding)}`}
      onMouseEnter=${onEnter}
      onMouseLeave=${onLeave}
      onFocus=${onEnter}
      onBlur=${onLeave}
    >
      <span class="label">${name}</span>
    </button>
  `
}

/**
 * What was found, as a list; the pointer shows which mark each entry is.
 * @param {{
 *   findings: Finding[],
 *   active: number | null,
 *   onActive: (index: number | null) => void,
 * }} props
 */
export function FindingsList({ findings, active, onActive }) {
  return html`
    <ol class="findings">
      ${findings.map(
        (finding, index) => html`
          <li
            key=${index}
            class=${active === index ? 'active' : ''}
            onMouseEnter=${() => onActive(index)}
            onMouseLeave=${() => onActive(null)}
          >
            <span>${finding.name}</span>
            <span class="muted">${placeOf(finding)}</span>
          </li>
        `,
      )}
    </ol>
  `
}
