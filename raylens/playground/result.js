// The answer to a request: text and findings, figures, preprocessing, JSON, and the same as code.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { CodeBlock, Notice, Segmented, TabPanel, Tabs } from './controls.js'
import { findingsOf, groundedParts, placeOf } from './overlay.js'
import { Preprocessing } from './preprocessing.js'
import { tokensPerSecond } from './run.js'
import { getKey, root } from './server.js'
import { SNIPPETS } from './snippets.js'
import { strings } from './strings.js'
import { isText, withPicture } from './tasks.js'

const VIEWS = ['answer', 'seen', 'json', 'code']

/**
 * @param {{
 *   run: import('./run.js').Run | null,
 *   model: string,
 *   active: number | null,
 *   onActive: (index: number | null) => void,
 *   onKeyWanted: () => void,
 *   onRetry: () => void,
 * }} props
 * `model` is the one that would answer.
 */
export function Result({ run, model, active, onActive, onKeyWanted, onRetry }) {
  const [view, setView] = useState('answer')
  const section = useRef(null)
  // On a phone, the answer is below the button that asks for it.
  useEffect(() => {
    if (run?.state === 'working') section.current.scrollIntoView({ block: 'nearest' })
  }, [run])
  const { result } = strings
  if (run === null) {
    return html`
      <section class="card result" aria-labelledby="result-title">
        <h2 id="result-title">${result.title}</h2>
        <p class="muted">${result.empty}</p>
      </section>
    `
  }
  const tabs = VIEWS.map((id) => ({ id, label: result[id] }))
  const views = {
    answer: () => html`
      <${Answer} ...${{ run, active, onActive, onKeyWanted, onRetry }} />
    `,
    seen: () => html`
      <${Preprocessing} run=${run} />
    `,
    json: () => html`
      <${Json} run=${run} />
    `,
    code: () => html`
      <${Code} run=${run} model=${model} />
    `,
  }
  return html`<section class="card result" aria-labelledby="result-title" ref=${section}>
    <div class="bar">
      <h2 id="result-title">${result.title}</h2>
      <${Tabs}
        id="view"
        class="subtabs"
        label=${result.views}
        tabs=${tabs}
        current=${view}
        onSelect=${setView}
      />
    </div>
    <${TabPanel} id="view" current=${view}>${views[view]()}<//>
    <p class="hidden" role="status">${run.state === 'done' ? result.announceDone : ''}</p>
  </section>`
}

function Answer({ run, active, onActive, onKeyWanted, onRetry }) {
  const { result, errors } = strings
  return html`
    ${
      isText(run.request.task)
        ? html`
            <${Text} ...${{ run, active, onActive }} />
          `
        : html`
            <${Findings} ...${{ run, active, onActive }} />
          `
    }
    ${
      run.error &&
      html`<${Notice} kind="error">
      <p>${run.error.message}</p>
      <div class="actions">
        ${
          run.error.needsKey &&
          html`
            <button type="button" onClick=${onKeyWanted}>${errors.enterKey}</button>
          `
        }
        <button type="button" onClick=${onRetry}>${errors.retry}</button>
      </div>
    <//>`
    }
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
    <${Figures} run=${run} />
  `
}

function Text({ run, active, onActive }) {
  const { result } = strings
  const isWaiting = run.state === 'working' && !run.text
  if (isWaiting)
    return html`
      <p class="answer muted working" role="status">${result.working}</p>
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
          ${run.text}
        </p>
      `
    }
  `
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

function Findings({ run, active, onActive }) {
  const { result } = strings
  if (run.state === 'working')
    return html`
      <p class="muted working" role="status">${result.workingFindings}</p>
    `
  if (run.state !== 'done') return null
  const findings = findingsOf(run)
  return html`
    <p class="answer" data-testid="answer">${result.found(findings.length, run.request.prompt)}</p>
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

function Figures({ run }) {
  const { result, duration, number } = strings
  const speed = tokensPerSecond(run)
  const { usage } = run
  const tokens = usage
    ? result.tokenCounts(usage.prompt_tokens, usage.completion_tokens)
    : run.pieces > 0 && result.tokensSoFar(run.pieces)
  const entries = [
    [result.firstToken, run.firstMs !== null && duration(run.firstMs)],
    [result.speed, speed !== null && number(speed)],
    [result.tokens, tokens],
    [result.total, run.totalMs !== null && duration(run.totalMs)],
    [result.model, run.model],
  ].filter(([, value]) => value)
  if (entries.length === 0) return null
  return html`
    <dl class="figures">
      ${entries.map(
        ([name, value]) => html`
          <div key=${name}>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>
        `,
      )}
    </dl>
  `
}

const pretty = (value) => (typeof value === 'string' ? value : JSON.stringify(value, null, 2))

function Json({ run }) {
  const { result } = strings
  const { request, picture } = run
  const image =
    picture.address ?? `data:${picture.blob.type};base64,${result.picture(picture.blob.size)}`
  const shown = pretty({ image_url: image, ...request.body })
  const answer = run.answer ?? run.error?.answer
  return html`
    <h3>
      ${result.request}
      <code>POST /${request.path}</code>
    </h3>
    <${CodeBlock}
      label=${result.request}
      text=${shown}
      getText=${async () => pretty(await withPicture(request.body, picture))}
    />
    ${
      answer &&
      html`
        <h3>${result.response}</h3>
        <${CodeBlock} label=${result.response} text=${pretty(answer)} />
      `
    }
  `
}

function Code({ run, model }) {
  const [language, setLanguage] = useState('curl')
  const { code } = strings
  const { request, picture } = run
  const source = {
    request,
    picture,
    root,
    hasKey: getKey() !== '',
    model: run.model || request.body.model || model,
  }
  const { text, notes } = SNIPPETS[language](source)
  const options = Object.keys(SNIPPETS).map((id) => ({ id, label: code[id] }))
  return html`
    <${Segmented}
      name="language"
      label=${code.label}
      options=${options}
      value=${language}
      onChange=${setLanguage}
    />
    <${CodeBlock} label=${code[language]} text=${text} />
    ${notes.map(
      (note) => html`
        <p class="hint" key=${note}>${note}</p>
      `,
    )}
    ${
      !picture.address &&
      !picture.example &&
      html`
        <p><a href=${picture.view} download=${picture.name}>${code.save(picture.name)}</a></p>
      `
    }
  `
}

/**
 * @param {{
 *   runs: import('./run.js').Run[],
 *   current: import('./run.js').Run | null,
 *   onSelect: (run: import('./run.js').Run) => void,
 *   onClear: () => void,
 * }} props
 */
export function History({ runs, current, onSelect, onClear }) {
  const { history, tasks } = strings
  if (runs.length === 0) return null
  return html`
    <section class="card history" aria-labelledby="history-title">
      <div class="bar">
        <h2 id="history-title">${history.title}</h2>
        <button type="button" class="quiet" onClick=${onClear}>${history.clear}</button>
      </div>
      <ul class="strip">
        ${runs.map(
          (run) => html`
            <li key=${run.id}>
              <button
                type="button"
                class="past"
                aria-current=${run === current ? 'true' : undefined}
                onClick=${() => onSelect(run)}
              >
                <img src=${run.picture.thumbnail} alt="" width="120" height="90" />
                <span class="kind">${tasks[run.request.task]}</span>
                <span class="text">${summaryOf(run)}</span>
              </button>
            </li>
          `,
        )}
      </ul>
    </section>
  `
}

function summaryOf(run) {
  if (run.state === 'failed') return strings.history.failed
  if (run.state === 'working') return '…'
  if (isText(run.request.task)) return run.request.prompt || run.text
  return strings.result.found(run.boxes.length + run.points.length, run.request.prompt)
}
