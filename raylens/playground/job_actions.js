// What can be done with jobs: with one, or with many at a time.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { ErrorNotice, Notice } from './controls.js'
import { abilitiesOf } from './job_view.js'
import { strings } from './strings.js'

const ACTIONS = ['retry', 'cancel', 'remove']

/**
 * Buttons for what is possible with at least one of the jobs. To remove asks once more.
 * @param {{
 *   jobs: import('./job_list.js').Job[],
 *   onChange: (action: 'retry' | 'cancel' | 'remove', ids: string[]) => Promise<void>,
 * }} props
 */
export function JobActions({ jobs, onChange }) {
  const [isAsking, setAsking] = useState(false)
  const [isBusy, setBusy] = useState(false)
  const { jobs: texts } = strings
  const able = Object.fromEntries(
    ACTIONS.map((action) => [action, jobs.filter((job) => abilitiesOf(job)[action])]),
  )
  const change = async (action) => {
    setAsking(false)
    setBusy(true)
    await onChange(
      action,
      able[action].map(({ id }) => id),
    )
    setBusy(false)
  }
  if (isAsking && able.remove.length > 0) {
    return html`
      <${Confirm}
        count=${able.remove.length}
        onRemove=${() => change('remove')}
        onKeep=${() => setAsking(false)}
      />
    `
  }
  return html`
    <div class="actions">
      ${ACTIONS.filter((action) => able[action].length > 0).map(
        (action) => html`
          <button
            key=${action}
            type="button"
            disabled=${isBusy}
            onClick=${() => (action === 'remove' ? setAsking(true) : change(action))}
          >
            ${jobs.length > 1 ? texts.actions(texts[action], able[action].length) : texts[action]}
          </button>
        `,
      )}
    </div>
  `
}

function Confirm({ count, onRemove, onKeep }) {
  const { jobs: texts } = strings
  const keep = useRef(null)
  useEffect(() => keep.current.focus(), [])
  return html`
    <div class="confirm" role="alertdialog" aria-label=${texts.remove}>
      <span>${texts.confirmRemove(count)}</span>
      <div class="actions">
        <button type="button" class="danger" onClick=${onRemove}>${texts.remove}</button>
        <button type="button" ref=${keep} onClick=${onKeep}>${texts.keep}</button>
      </div>
    </div>
  `
}

/**
 * Changes of jobs, and what became of them: why some were refused, or what is waited out.
 * @param {import('./job_list.js').JobList} list
 */
export function useChanges(list) {
  const [problem, setProblem] = useState('')
  const [trouble, setTrouble] = useState(null)
  const abort = useRef(new AbortController())
  const stop = () => {
    abort.current.abort()
    abort.current = new AbortController()
    setTrouble(null)
  }
  useEffect(() => stop, [list])
  const change = async (action, ids, onProgress = () => {}) => {
    const { signal } = abort.current
    setProblem('')
    const onDone = (done, total) => {
      onProgress(done, total)
      setTrouble(null)
    }
    const refused = await list.change(action, ids, signal, onDone, setTrouble)
    const { someRefused } = strings.jobs
    if (refused.length > 0) setProblem(someRefused(refused.length, refused[0].message))
  }
  return { change, stop, problem, setProblem, trouble }
}

/** @param {{changes: ReturnType<typeof useChanges>}} props */
export function ChangeNotices({ changes }) {
  const { problem, setProblem, trouble, stop } = changes
  const { jobs: texts } = strings
  return html`
    <${ErrorNotice} error=${problem && { message: problem }} onClose=${() => setProblem('')} />
    ${
      trouble &&
      html`<${Notice} kind="note">
        <p>${texts.changeGoesOn(trouble.reason)}</p>
        <div class="actions">
          <button type="button" onClick=${stop}>${texts.stopChange}</button>
        </div>
      <//>`
    }
  `
}
