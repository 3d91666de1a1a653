// The card with the jobs: filters, actions on many, downloads, and the grid, page by page.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { ErrorNotice, Notice } from './controls.js'
import { JobActions } from './job_actions.js'
import { toCsv, toJsonLines } from './job_export.js'
import { Filters, Grid, Pager } from './job_grid.js'
import { filterJobs, NO_FILTER } from './job_view.js'
import { save } from './save.js'
import { strings } from './strings.js'

const PAGE = 48
const NOTHING = new Set()
const IDLE = { isLoading: false, trouble: '' }

/**
 * @param {{
 *   list: import('./job_list.js').JobList,
 *   pictures: import('./job_pictures.js').JobPictures,
 *   visible: {current: string[]},
 *   onChange: (action: string, ids: string[], onProgress: any) => Promise<void>,
 *   onOpen: (id: string) => void,
 *   onKeyWanted: () => void,
 * }} props
 * `visible` gets the ids of what the filter shows.
 */
export function JobsCard({ list, pictures, visible, onChange, onOpen, onKeyWanted }) {
  const [filter, setFilter] = useState(NO_FILTER)
  const [page, setPage] = useState(0)
  const [selected, setSelected] = useState(NOTHING)
  const [work, setWork] = useState('')
  const { jobs: texts } = strings
  const jobs = list.sorted.filter(({ job_type }) => job_type !== 'watch')
  const shown = filterJobs(jobs, filter)
  visible.current = shown.map(({ id }) => id)
  const lastPage = Math.max(0, Math.ceil(shown.length / PAGE) - 1)
  const current = Math.min(page, lastPage)
  const chosen = shown.filter(({ id }) => selected.has(id))
  const select = (id, isSelected) =>
    setSelected((old) => {
      const next = new Set(old)
      if (isSelected) next.add(id)
      else next.delete(id)
      return next
    })
  const change = async (action, ids) => {
    await onChange(action, ids, (done, total) =>
      setWork(done < total ? texts.changing(done, total) : ''),
    )
    setSelected(NOTHING)
  }
  const toPage = (next) => {
    setPage(next)
    document.getElementById('job-list-title').scrollIntoView({ block: 'start' })
  }
  return html`
    <section class="card jobs-card" aria-labelledby="job-list-title">
      <div class="bar">
        <h2 id="job-list-title">${texts.title}</h2>
        <${Connection} list=${list} />
        <span class="muted" role="status">
          ${work || (jobs.length > 0 && texts.shown(shown.length, jobs.length))}
        </span>
        ${shown.length > 0 && html`<${Downloads} jobs=${shown} />`}
      </div>
      <${Trouble} list=${list} onKeyWanted=${onKeyWanted} />
      ${
        jobs.length > 0 &&
        html`
          <${Filters}
            ...${{ jobs, filter }}
            onChange=${(next) => {
              setFilter(next)
              setPage(0)
            }}
          />
          <${Selection}
            ...${{ shown, chosen }}
            onSelect=${(all) => setSelected(new Set(all.map(({ id }) => id)))}
            onChange=${change}
          />
        `
      }
      ${shown.length === 0 && html`<${Empty} list=${list} hasJobs=${jobs.length > 0} />`}
      <${Grid}
        jobs=${shown.slice(current * PAGE, (current + 1) * PAGE)}
        ...${{ pictures, selected, onOpen }}
        onSelect=${select}
      />
      <${Pager}
        page=${current}
        size=${PAGE}
        count=${shown.length}
        onPage=${toPage}
      >
        ${list.cursor && html`<${Older} list=${list} />`}
      <//>
    </section>
  `
}

function Connection({ list }) {
  const { jobs: texts } = strings
  const [name, text] = list.isLive
    ? ['healthy', texts.live]
    : list.error
      ? ['away', texts.offline]
      : ['unknown', texts.connecting]
  return html`
    <span class=${`state ${name}`} role="status">${text}</span>
  `
}

function Trouble({ list, onKeyWanted }) {
  const { error } = list
  const { jobs: texts } = strings
  if (!error || list.isLive) return null
  if (error.status === 404)
    return html`
      <p class="muted">${texts.noQueue}</p>
    `
  return html`
    <${ErrorNotice}
      ...${{ error, onKeyWanted }}
      text=${list.isRefused ? error.message : texts.offlineHelp(error.reason)}
    />
  `
}

function Empty({ list, hasJobs }) {
  const { jobs: texts } = strings
  if (list.error && !list.isLoaded) return null
  const text = hasJobs ? texts.noMatch : list.isLoaded ? texts.none : texts.loading
  return html`
    <p class="muted">${text}</p>
  `
}

/** Loads the next older jobs, and says that it does, or why it can't. */
function Older({ list }) {
  const [{ isLoading, trouble }, setState] = useState(IDLE)
  const abort = useRef(new AbortController())
  const { jobs: texts } = strings
  useEffect(
    () => () => {
      abort.current.abort()
      setState(IDLE)
    },
    [list],
  )
  const load = async () => {
    abort.current = new AbortController()
    const { signal } = abort.current
    const show = (state) => signal.aborted || setState({ ...IDLE, ...state })
    const { tryingAgain } = strings.errors
    const onTrouble = ({ reason }) => show({ isLoading: true, trouble: tryingAgain(reason) })
    show({ isLoading: true })
    try {
      await list.loadOlder(signal, onTrouble)
      show({})
    } catch (error) {
      show({ trouble: error.message })
    }
  }
  return html`
    <button
      type="button"
      class=${isLoading ? 'quiet working' : 'quiet'}
      disabled=${isLoading}
      onClick=${load}
    >
      ${isLoading ? texts.loadingOlder : texts.loadOlder}
    </button>
    ${trouble && html`<${Notice} kind="error"><p>${trouble}</p><//>`}
  `
}

function Downloads({ jobs }) {
  const { jobs: texts } = strings
  return html`
    <div class="actions downloads">
      <button
        type="button"
        class="quiet"
        onClick=${() => save(`${texts.fileName}.jsonl`, 'application/jsonl', toJsonLines(jobs))}
      >
        ${texts.download('JSONL')}
      </button>
      <button
        type="button"
        class="quiet"
        onClick=${() => save(`${texts.fileName}.csv`, 'text/csv', toCsv(jobs))}
      >
        ${texts.download('CSV')}
      </button>
    </div>
  `
}

/** What is selected of what the filter shows, and what can be done with it. */
function Selection({ shown, chosen, onSelect, onChange }) {
  const { jobs: texts } = strings
  const isAll = chosen.length === shown.length
  return html`
    <div class="bar selection">
      ${
        shown.length > 0 &&
        !isAll &&
        html`
          <button type="button" class="quiet" onClick=${() => onSelect(shown)}>
            ${texts.selectAll(shown.length)}
          </button>
        `
      }
      ${
        chosen.length > 0 &&
        html`
          <span>${texts.selected(chosen.length)}</span>
          <button type="button" class="quiet" onClick=${() => onSelect([])}>
            ${texts.deselect}
          </button>
          <${JobActions} jobs=${chosen} onChange=${onChange} />
        `
      }
    </div>
  `
}
