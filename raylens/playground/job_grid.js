// The jobs as a grid: each with its picture, its state and its answer.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { PictureIcon } from './icons.js'
import { useJobPicture } from './job_pictures.js'
import {
  answerOf,
  durationOf,
  errorOf,
  findingsOf,
  modelOf,
  nameOf,
  NO_FILTER,
  promptOf,
  STATES,
} from './job_view.js'
import { strings } from './strings.js'

/**
 * @typedef {import('./job_list.js').Job} Job
 * @typedef {import('./job_view.js').Filter} Filter
 */

const NO_BREAK = '\u00a0'

/** @param {{jobs: Job[], filter: Filter, onChange: (filter: Filter) => void}} props */
export function Filters({ jobs, filter, onChange }) {
  const { jobs: texts } = strings
  const set = (name) => (event) => onChange({ ...filter, [name]: event.target.value })
  const types = namesOf(jobs.map((job) => job.job_type))
  const models = namesOf(jobs.map(modelOf))
  const typeLabel = (type) => strings.tasks[type] ?? type
  return html`
    <div class="filters" role="search" aria-label=${texts.filter}>
      <input
        type="search"
        aria-label=${texts.search}
        placeholder=${texts.search}
        value=${filter.text}
        onInput=${set('text')}
      />
      <${Select}
        any=${texts.anyState}
        value=${filter.state}
        options=${STATES.map((state) => [state, texts.states[state]])}
        onChange=${set('state')}
      />
      <${Select}
        any=${texts.anyTask}
        value=${filter.type}
        options=${types.map((type) => [type, typeLabel(type)])}
        onChange=${set('type')}
      />
      <${Select}
        any=${texts.anyModel}
        value=${filter.model}
        options=${models.map((model) => [model, model])}
        onChange=${set('model')}
      />
      ${
        Object.values(filter).some(Boolean) &&
        html`
          <button type="button" class="quiet" onClick=${() => onChange(NO_FILTER)}>
            ${texts.reset}
          </button>
        `
      }
    </div>
  `
}

const namesOf = (names) => [...new Set(names)].filter(Boolean).sort()

function Select({ any, value, options, onChange }) {
  return html`
    <select aria-label=${any} onChange=${onChange}>
      <option value="" selected=${value === ''}>${any}</option>
      ${options.map(
        ([id, label]) => html`
          <option key=${id} value=${id} selected=${id === value}>${label}</option>
        `,
      )}
    </select>
  `
}

/**
 * @param {{
 *   jobs: Job[],
 *   pictures: import('./job_pictures.js').JobPictures,
 *   selected: Set<string>,
 *   onSelect: (id: string, isSelected: boolean) => void,
 *   onOpen: (id: string) => void,
 * }} props
 */
export function Grid({ jobs, pictures, selected, onSelect, onOpen }) {
  return html`
    <ul class="grid">
      ${jobs.map(
        (job) => html`
          <${Card}
            key=${job.id}
            ...${{ job, pictures, onOpen }}
            isSelected=${selected.has(job.id)}
            onSelect=${onSelect}
          />
        `,
      )}
    </ul>
  `
}

function Card({ job, pictures, isSelected, onSelect, onOpen }) {
  const { jobs: texts } = strings
  const name = nameOf(job)
  return html`
    <li class=${isSelected ? 'job selected' : 'job'} data-state=${job.status}>
      <button
        type="button"
        class="job-picture"
        aria-label=${texts.open(name)}
        onClick=${() => onOpen(job.id)}
      >
        <${Thumbnail} job=${job} pictures=${pictures} />
      </button>
      <input
        type="checkbox"
        class="job-check"
        aria-label=${texts.select(name)}
        checked=${isSelected}
        onChange=${(event) => onSelect(job.id, event.target.checked)}
      />
      <div class="job-text">
        <p class="job-name" title=${name}>${name}</p>
        <${State} job=${job} />
        <${Outcome} job=${job} />
        <p class="job-facts" title=${strings.time(job.created_at)}>${factsOf(job)}</p>
      </div>
    </li>
  `
}

/** @param {{job: Job}} props */
export function State({ job }) {
  const { jobs: texts } = strings
  const { progress, status } = job
  const steps = status === 'running' && progress?.total > 0
  return html`
    <span class=${`state ${status}`}>
      ${texts.states[status]}${steps && ` ${texts.steps(progress.done, progress.total)}`}
    </span>
  `
}

function Outcome({ job }) {
  const error = errorOf(job)
  const kind = job.status === 'failed' ? 'problem' : 'muted'
  if (error)
    return html`
      <p class=${`job-answer ${kind}`} title=${error}>${error}</p>
    `
  const answer = answerOf(job)
  return html`
    <p class=${answer ? 'job-answer' : 'job-answer muted'} title=${answer}>
      ${answer || promptOf(job)}
    </p>
  `
}

function factsOf(job) {
  const { jobs: texts, duration, tasks, shortTime } = strings
  const ran = durationOf(job)
  return [
    tasks[job.job_type] ?? job.job_type,
    ran !== null && duration(ran),
    job.attempts > 1 && texts.attempt(job.attempts, job.max_attempts),
    shortTime(job.created_at),
  ]
    .filter(Boolean)
    .map((fact) => fact.replaceAll(' ', NO_BREAK))
    .join(' · ')
}

function Thumbnail({ job, pictures }) {
  const [ref, isSeen] = useSeen()
  const picture = useJobPicture(pictures, isSeen ? job : null)
  return html`
    <span class="thumb" ref=${ref}>
      ${
        picture
          ? html`
              <span class="frame" style=${{ '--ratio': picture.width / picture.height }}>
                <img src=${picture.thumbnail} alt="" />
                ${findingsOf(job).map(
                  (finding, index) => html`
                    <span
                      key=${index}
                      class=${finding.isPoint ? 'mark point' : 'mark box'}
                      style=${placed(finding)}
                    ></span>
                  `,
                )}
              </span>
            `
          : html`
              <span class="no-picture"><${PictureIcon} /></span>
            `
      }
    </span>
  `
}

function placed({ x, y, width, height, isPoint }) {
  const percent = (fraction) => `${100 * fraction}%`
  const size = isPoint ? {} : { width: percent(width), height: percent(height) }
  return { left: percent(x), top: percent(y), ...size }
}

/** Return a reference, and whether its element has been in the window. */
function useSeen() {
  const ref = useRef(null)
  const [isSeen, setSeen] = useState(false)
  useEffect(() => {
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return
      setSeen(true)
      observer.disconnect()
    })
    observer.observe(ref.current)
    return () => observer.disconnect()
  }, [])
  return [ref, isSeen]
}

/**
 * @param {{
 *   page: number,
 *   size: number,
 *   count: number,
 *   onPage: (page: number) => void,
 *   children?: any,
 * }} props
 */
export function Pager({ page, size, count, onPage, children }) {
  const { jobs: texts } = strings
  const first = page * size
  const last = Math.min(first + size, count)
  if (count <= size && !children) return null
  return html`
    <nav class="bar pager" aria-label=${texts.pages}>
      <button type="button" disabled=${page === 0} onClick=${() => onPage(page - 1)}>
        ${texts.previous}
      </button>
      <span>${texts.page(Math.min(first + 1, count), last, count)}</span>
      <button type="button" disabled=${last >= count} onClick=${() => onPage(page + 1)}>
        ${texts.next}
      </button>
      ${children}
    </nav>
  `
}
