// One job, opened: its picture with what was found, all details, JSON, and webhook deliveries.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { CodeBlock, Notice, TabPanel, Tabs } from './controls.js'
import { ChangeNotices, JobActions } from './job_actions.js'
import { State } from './job_grid.js'
import { useJobPicture } from './job_pictures.js'
import {
  answerOf,
  durationOf,
  errorOf,
  fileOf,
  findingsOf,
  modelOf,
  nameOf,
  promptOf,
} from './job_view.js'
import { FindingsList, PictureWithFindings } from './overlay.js'
import { ask, asSentence } from './server.js'
import { strings } from './strings.js'

const VIEWS = ['details', 'json', 'webhooks']

/**
 * @param {{
 *   job: import('./job_list.js').Job | null,
 *   pictures: import('./job_pictures.js').JobPictures,
 *   changes: ReturnType<typeof import('./job_actions.js').useChanges>,
 *   onStep: (step: number) => void,
 *   onClose: () => void,
 * }} props
 * `job` is null if it is gone.
 */
export function JobDialog({ job, pictures, changes, onStep, onClose }) {
  const dialog = useRef(null)
  const [view, setView] = useState('details')
  const [active, setActive] = useState(null)
  const picture = useJobPicture(pictures, job)
  useEffect(() => dialog.current.showModal(), [])
  useEffect(() => setActive(null), [job?.id])
  const { jobs: texts } = strings
  const onKeyDown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    if (step && !event.target.closest('[role=tablist], pre')) onStep(step)
  }
  const tabs = VIEWS.map((id) => ({ id, label: texts[id] }))
  return html`
    <dialog
      ref=${dialog}
      class="job-dialog"
      aria-labelledby="job-title"
      onClose=${onClose}
      onKeyDown=${onKeyDown}
    >
      <div class="bar head">
        <h2 id="job-title">${job ? nameOf(job) : texts.gone}</h2>
        ${
          job &&
          html`
            <${State} job=${job} />
          `
        }
        <div class="actions">
          <button type="button" onClick=${() => onStep(-1)}>${texts.previous}</button>
          <button type="button" onClick=${() => onStep(1)}>${texts.next}</button>
          <button type="button" onClick=${() => dialog.current.close()}>${texts.close}</button>
        </div>
      </div>
      <${ChangeNotices} changes=${changes} />
      ${
        job &&
        html`
          <div class="job-columns">
            <div class="stage">
              ${
                picture
                  ? html`
                      <${PictureWithFindings}
                        ...${{ picture, active }}
                        findings=${findingsOf(job)}
                        onActive=${setActive}
                      />
                    `
                  : html`
                      <span class="muted">${texts.noPicture}</span>
                    `
              }
            </div>
            <div class="job-side">
              <div class="bar">
                <${Tabs}
                  id="job-view"
                  label=${texts.views}
                  tabs=${tabs}
                  current=${view}
                  onSelect=${setView}
                />
                <${JobActions} key=${job.id} jobs=${[job]} onChange=${changes.change} />
              </div>
              <${TabPanel} id="job-view" class="job-panel" current=${view}>
                ${
                  view === 'details' &&
                  html`
                    <${Details} ...${{ job, active }} onActive=${setActive} />
                  `
                }
                ${view === 'json' && html`<${Json} key=${job.id} job=${job} />`}
                ${view === 'webhooks' && html`<${Deliveries} key=${job.id} job=${job} />`}
              <//>
            </div>
          </div>
        `
      }
    </dialog>
  `
}

function Details({ job, active, onActive }) {
  const { jobs: texts, duration, time } = strings
  const error = errorOf(job)
  const findings = findingsOf(job)
  const ran = durationOf(job)
  const facts = [
    ['file', fileOf(job)],
    ['id', job.id],
    ['task', strings.tasks[job.job_type] ?? job.job_type],
    ['prompt', promptOf(job)],
    ['model', modelOf(job)],
    ['attempts', texts.steps(job.attempts, job.max_attempts)],
    ['priority', job.priority !== 0 && String(job.priority)],
    ['created', time(job.created_at)],
    ['started', job.started_at && time(job.started_at)],
    ['finished', job.finished_at && time(job.finished_at)],
    ['duration', ran !== null && duration(ran)],
    ['webhook', job.webhook_url],
  ].filter(([, value]) => value)
  return html`
    ${
      error &&
      html`<${Notice} kind=${job.status === 'failed' ? 'error' : 'note'}><p>${error}</p><//>`
    }
    ${
      answerOf(job) &&
      html`
        <p class="answer" data-testid="job-answer">${answerOf(job)}</p>
      `
    }
    ${
      findings.length > 0 &&
      html`
        <${FindingsList} ...${{ findings, active, onActive }} />
      `
    }
    <dl class="job-details">
      ${facts.map(
        ([name, value]) => html`
          <dt key=${`${name}-name`}>${texts.fields[name]}</dt>
          <dd key=${name}>${value}</dd>
        `,
      )}
    </dl>
  `
}

/** Return what the server answers, asked again whenever `version` changes. */
function useAnswer(path, version) {
  const [state, setState] = useState({ answer: null, error: '' })
  useEffect(() => {
    const abort = new AbortController()
    ask(path, { signal: abort.signal })
      .then((answer) => setState({ answer, error: '' }))
      .catch(
        (error) => error.name === 'AbortError' || setState({ answer: null, error: error.message }),
      )
    return () => abort.abort()
  }, [path, version])
  return state
}

function Json({ job }) {
  const { answer, error } = useAnswer(`api/v1/jobs/${job.id}`, job)
  if (error) return html`<${Notice} kind="error"><p>${error}</p><//>`
  return html`
    <${CodeBlock} label=${strings.jobs.json} text=${JSON.stringify(answer ?? job, null, 2)} />
  `
}

const REFRESH_MS = 2000

function Deliveries({ job }) {
  const { jobs: texts } = strings
  const [version, setVersion] = useState(0)
  const [refusal, setRefusal] = useState('')
  const path = `api/v1/jobs/${job.id}/deliveries`
  const { answer, error } = useAnswer(path, `${job.status} ${version}`)
  const deliveries = answer?.deliveries ?? []
  const isWaiting = deliveries.some(({ status }) => status === 'pending')
  useEffect(() => {
    if (!isWaiting) return undefined
    const timer = setInterval(() => setVersion((old) => old + 1), REFRESH_MS)
    return () => clearInterval(timer)
  }, [isWaiting])
  const redeliver = async (number) => {
    try {
      await ask(`${path}/${number}/redeliver`, { method: 'POST' })
      setRefusal('')
    } catch (problem) {
      setRefusal(problem.message)
    }
    setVersion((old) => old + 1)
  }
  if (!job.webhook_url)
    return html`
      <p class="muted">${texts.noWebhook}</p>
    `
  return html`
    ${(error || refusal) && html`<${Notice} kind="error"><p>${error || refusal}</p><//>`}
    ${
      answer &&
      deliveries.length === 0 &&
      html`
        <p class="muted">${texts.noDeliveries}</p>
      `
    }
    <ul class="deliveries">
      ${deliveries.map(
        (delivery) => html`
          <${Delivery} key=${delivery.number} ...${{ delivery, onAgain: redeliver }} />
        `,
      )}
    </ul>
  `
}

function Delivery({ delivery, onAgain }) {
  const { jobs: texts, time } = strings
  const { number, event, status, attempts, http_status, error } = delivery
  const facts = [
    ['attempts', String(attempts)],
    ['status', http_status && String(http_status)],
    ['at', delivery.delivered_at && time(delivery.delivered_at)],
    ['next', delivery.next_attempt_at && time(delivery.next_attempt_at)],
  ].filter(([, value]) => value)
  return html`
    <li>
      <div class="bar">
        <strong>${event}</strong>
        <span class=${`state ${status}`}>${texts.deliveryStates[status]}</span>
        <button type="button" class="quiet" onClick=${() => onAgain(number)}>
          ${texts.redeliver}
        </button>
      </div>
      <p class="muted">
        ${facts.map(([name, value]) => `${texts.deliveries[name]}: ${value}`).join(' · ')}
      </p>
      ${
        error &&
        html`
          <p class="problem">${asSentence(error)}</p>
        `
      }
    </li>
  `
}
