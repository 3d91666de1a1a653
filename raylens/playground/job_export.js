// Jobs as files: JSON lines, and CSV (RFC 4180).

import { answerOf, fileOf, modelOf, placesOf, promptOf } from './job_view.js'

/** @param {import('./job_list.js').Job} job */
function toRecord(job) {
  return {
    file: fileOf(job),
    job: job.id,
    state: job.status,
    model: modelOf(job),
    task: job.job_type,
    prompt: promptOf(job),
    answer: answerOf(job),
    boxes: placesOf(job),
    error: job.error?.message ?? null,
    created_at: job.created_at,
    started_at: job.started_at,
    finished_at: job.finished_at,
  }
}

/** @param {import('./job_list.js').Job[]} jobs */
export function toJsonLines(jobs) {
  return jobs.map((job) => `${JSON.stringify(toRecord(job))}\n`).join('')
}

/** @param {import('./job_list.js').Job[]} jobs */
export function toCsv(jobs) {
  const records = jobs.map(toRecord)
  const names = ['file', 'job', 'state', 'model', 'task', 'prompt', 'answer', 'boxes', 'error']
  const columns = [...names, 'created_at', 'started_at', 'finished_at']
  const rows = records.map((record) => columns.map((name) => toCell(record[name])))
  return [columns, ...rows].map((row) => `${row.join()}\r\n`).join('')
}

/**
 * Return a cell. A text that a spreadsheet would take for a formula begins with an apostrophe.
 * Source: OWASP, "CSV Injection".
 */
function toCell(value) {
  const text = typeof value === 'object' && value !== null ? JSON.stringify(value) : (value ?? '')
  const safe = /^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}
