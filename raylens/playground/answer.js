// The answer to a request: text, boxes and points, notes, and figures.

import { html } from './vendor/htm-preact.js'
import { ErrorNotice, Notice } from './controls.js'
import { FindingsList, findingsOf, groundedParts, PictureWithFindings } from './overlay.js'
import { tokensPerSecond } from './run.js'
import { strings } from './strings.js'
import { isText } from './tasks.js'

/**
 * @typedef {object} AnswerProps
 * @property {import('./run.js').Run} run
 * @property {number | null} active
 * @property {(index: number | null) => void} onActive
 * @property {() => void} onKeyWanted
 * @property {() => void} onRetry
 * @property {import('./comparison.js').Comparison} [comparison] with another answer beside this one
 */

/** @param {AnswerProps} props */
export function Answer({ run, active, onActive, onKeyWanted, onRetry, comparison }) {
  const hasText = isText(run.request.task)
  const findings = findingsOf(run)
  return html`
    ${
      comparison &&
      (!hasText || findings.length > 0) &&
      html`
        <div class="stage">
          <${PictureWithFindings} picture=${run.picture} ...${{ findings, active, onActive }} />
        </div>
      `
    }
    ${
      hasText
        ? html`
            <${Text} ...${{ run, active, onActive }} words=${comparison?.words} />
          `
        : html`
            <${Findings} ...${{ run, active, onActive }} />
          `
    }
    <${Outcome} ...${{ run, onKeyWanted, onRetry }} />
    <${Figures} run=${run} best=${comparison?.best} />
  `
}

/**
 * What the user must know of a run, beside its answer: that it failed or was stopped, and notes.
 * @param {{
 *   run: import('./run.js').Run,
 *   onKeyWanted: () => void,
 *   onRetry: (() => void) | null,
 * }} props
 */
export function Outcome({ run, onKeyWanted, onRetry }) {
  const { result, errors } = strings
  return html`
    <${ErrorNotice} error=${run.error} onKeyWanted=${onKeyWanted}>
      ${
        onRetry &&
        html`
          <button type="button" onClick=${onRetry}>${errors.retry}</button>
        `
      }
    <//>
    ${
      run.state === 'stopped' &&
      html`
        <p class="muted">${result.stopped}</p>
      `
    }
    ${
      run.warnings.length > 0 &&
      html`<${Notice} kind="note">
      <ul aria-label=${strings.warnings}>${run.warnings.map(
        (warning) => html`
          <li key=${warning}>${warning}</li>
        `,
      )}</ul>
    <//>`
    }
  `
}

/**
 * @param {{
 *   run: import('./run.js').Run,
 *   active: number | null,
 *   onActive: (index: number | null) => void,
 *   words?: import('./comparison.js').Word[] | null,
 * }} props
 * `words` are the text, if some of it is to be marked.
 */
export function Text({ run, active, onActive, words }) {
  const { result } = strings
  if (run.state === 'working' && !run.text)
    return html`
      <p class="answer muted working" role="status">${waitOf(run, result.working)}</p>
    `
  if (run.state === 'done' && !run.text)
    return html`
      <p class="muted">${result.noText}</p>
    `
  return html`
    ${
      run.reasoning &&
      html`
        <details open class="reasoning">
          <summary>${result.reasoning}</summary>
          <p>
            ${groundedParts(run).map(
              (part, index) => html`
                <${ReasoningPart} key=${index} ...${{ part, active, onActive }} />
              `,
            )}
          </p>
        </details>
      `
    }
    ${
      run.text &&
      html`
        <p class=${run.state === 'working' ? 'answer streaming' : 'answer'} data-testid="answer">
          ${words ? words.map(asMarked) : run.text}
        </p>
      `
    }
  `
}

/** Return what a run waits for. */
function waitOf({ trouble }, usual) {
  return trouble ? strings.errors.tryingAgain(trouble.reason) : usual
}

/** A part of the reasoning; the pointer shows what it is about. */
function ReasoningPart({ part, active, onActive }) {
  const { text, points, first } = part
  if (points.length === 0) return text
  const isActive = active >= first && active < first + points.length
  return html`
    <mark
      class=${isActive ? 'active' : ''}
      onMouseEnter=${() => onActive(first)}
      onMouseLeave=${() => onActive(null)}
    >
      ${text}
    </mark>
  `
}

/** @param {import('./comparison.js').Word} word */
function asMarked({ text, isOwn }) {
  return isOwn
    ? html`
        <mark>${text}</mark>
      `
    : text
}

function Findings({ run, active, onActive }) {
  const { result } = strings
  if (run.state === 'working')
    return html`
      <p class="muted working" role="status">${waitOf(run, result.workingFindings)}</p>
    `
  if (run.state !== 'done') return null
  const findings = findingsOf(run)
  return html`
    <p class="answer" data-testid="answer">${result.found(findings.length, run.request.prompt)}</p>
    <${FindingsList} ...${{ findings, active, onActive }} />
  `
}

/**
 * @param {{run: import('./run.js').Run, best?: string[]}} props
 * `best` are the figures in which this run is ahead of another one.
 */
export function Figures({ run, best = [] }) {
  const { result, duration, number } = strings
  const speed = tokensPerSecond(run)
  const { usage } = run
  const tokens = usage
    ? result.tokenCounts(usage.prompt_tokens, usage.completion_tokens)
    : run.pieces > 0 && result.tokensSoFar(run.pieces)
  const entries = [
    ['firstToken', run.firstMs !== null && duration(run.firstMs)],
    ['speed', speed !== null && number(speed)],
    ['tokens', tokens],
    ['total', run.totalMs !== null && duration(run.totalMs)],
    ['model', run.model],
  ].filter(([, value]) => value)
  if (entries.length === 0) return null
  return html`
    <dl class="figures">
      ${entries.map(
        ([name, value]) => html`
          <div key=${name} class=${best.includes(name) ? 'best' : ''}>
            <dt>${result[name]}</dt>
            <dd>${value}</dd>
          </div>
        `,
      )}
    </dl>
  `
}
