// The tab "Status": models, replicas, and the figures of the last minutes.

import { html } from './vendor/htm-preact.js'
import { ErrorNotice, Notice } from './controls.js'
import { Figures, JOB_FIGURES, MODEL_FIGURES, SERVER_FIGURES } from './figures.js'
import { usePolling } from './polling.js'
import { root } from './server.js'
import { strings } from './strings.js'

const POLL_MS = 5000

/** @param {{keyVersion: number, onKeyWanted: () => void}} props */
export function StatusTab({ keyVersion, onKeyWanted }) {
  const { answer: status, error, time } = usePolling('api/v1/status', POLL_MS, keyVersion)
  const { status: texts } = strings
  return html`
    <div class="status">
      <div class="bar">
        <h2>${texts.title}</h2>
        <p class="about muted">${status && texts.updated(status.version, time)}</p>
      </div>
      <${ErrorNotice}
        ...${{ error, onKeyWanted }}
        text=${status && error && texts.old(error.reason, time)}
      />
      ${
        !status &&
        !error &&
        html`
          <p class="muted working" role="status">${texts.loading}</p>
        `
      }
      ${status && html`<${Content} status=${status} />`}
    </div>
  `
}

function Content({ status }) {
  const { history, deployments, models, links } = status
  const { status: texts } = strings
  const problem = problemOf(history)
  const ingresses = Math.max(1, deployments?.Ingress?.running ?? 1)
  return html`
    ${problem && html`<${Notice} kind="note"><p>${problem}</p><//>`}
    ${
      history?.times.length > 0 &&
      html`
        <section class="card" aria-labelledby="server-title">
          <div class="bar">
            <h2 id="server-title">${texts.server}</h2>
            <p class="about muted">${texts.span(minutesOf(history.times))}</p>
          </div>
          <${Figures}
            figures=${SERVER_FIGURES}
            names=${texts.figures}
            times=${history.times}
            series=${history.server}
            context=${{ totals: history.totals, limit: ingresses * status.max_in_flight }}
          />
        </section>
      `
    }
    ${Object.entries(models).map(
      ([name, model]) => html`
        <${Model} key=${name} ...${{ name, model, history }} deployment=${deployments?.[name]} />
      `,
    )}
    ${
      history?.jobs.queued.some((value) => value !== null) &&
      html`
        <section class="card" aria-labelledby="status-jobs-title">
          <h2 id="status-jobs-title">${texts.jobs}</h2>
          <${Figures}
            figures=${JOB_FIGURES}
            names=${texts.jobFigures}
            times=${history.times}
            series=${history.jobs}
            context=${{ totals: history.totals }}
          />
        </section>
      `
    }
    ${deployments && html`<${Deployments} deployments=${deployments} />`}
    <${Links} links=${links} />
  `
}

const minutesOf = (times) => Math.max(1, Math.round((times.at(-1) - times[0]) / 60))

/** Return what is missing from the figures; empty if nothing. */
function problemOf(history) {
  const { status } = strings
  if (!history) return status.noHistory
  if (history.nodes > 0 && history.answering < history.nodes)
    return status.silentNodes(history.nodes - history.answering, history.nodes)
  return history.times.length === 0 ? status.soon : ''
}

function Model({ name, model, history, deployment }) {
  const { status: texts } = strings
  const id = `model-${name}`
  const running = Math.max(1, deployment?.running ?? 1)
  const facts = [
    [texts.replicas, deployment && texts.replicaCounts(deployment)],
    [texts.device, model.device],
    [texts.dtype, model.dtype],
    [texts.resources, deployment && texts.reserved(deployment.resources)],
    [texts.family, model.family],
    [texts.parameters, model.parameters && texts.size(model.parameters)],
    [texts.tasks, model.tasks.join(', ')],
    [texts.checkpoint, model.checkpoint],
  ].filter(([, value]) => value)
  return html`
    <section class="card" aria-labelledby=${id}>
      <div class="bar">
        <h2 id=${id}>${name}</h2>
        <span class=${`state ${model.state.replace(' ', '-')}`}>${texts.states[model.state]}</span>
      </div>
      ${
        deployment?.message &&
        html`<${Notice} kind="note"><p class="message">${deployment.message}</p><//>`
      }
      <dl class="facts">
        ${facts.map(
          ([label, value]) => html`
            <div key=${label}>
              <dt>${label}</dt>
              <dd>${value}</dd>
            </div>
          `,
        )}
      </dl>
      ${
        history?.times.length > 0 &&
        model.state === 'loaded' &&
        html`
          <${Figures}
            figures=${MODEL_FIGURES}
            names=${texts.figures}
            times=${history.times}
            series=${history.models[name]}
            context=${{
              totals: history.model_totals[name],
              slots: running * model.max_batch_size,
              limit: running * model.max_waiting,
            }}
          />
        `
      }
    </section>
  `
}

function Deployments({ deployments }) {
  const { status: texts } = strings
  return html`
    <section class="card" aria-labelledby="deployments-title">
      <h2 id="deployments-title">${texts.deployments}</h2>
      <div class="scroll" tabindex="0" role="region" aria-labelledby="deployments-title">
        <table>
          <thead>
            <tr>
              ${[texts.name, texts.state, texts.replicas, texts.resources].map(
                (label) => html`
                  <th key=${label} scope="col">${label}</th>
                `,
              )}
            </tr>
          </thead>
          <tbody>
            ${Object.entries(deployments).map(
              ([name, deployment]) => html`
                <tr key=${name}>
                  <th scope="row">${name}</th>
                  <td>
                    <span class=${`state ${deployment.status.toLowerCase()}`}>
                      ${texts.statuses[deployment.status] ?? deployment.status}
                    </span>
                  </td>
                  <td>${texts.replicaCounts(deployment)}</td>
                  <td>${texts.reserved(deployment.resources)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `
}

function Links({ links }) {
  const { status: texts } = strings
  const known = [['api', `${root}docs`], ...Object.entries(links)].filter(([, url]) => url)
  return html`
    <nav class="card" aria-labelledby="links-title">
      <h2 id="links-title">${texts.links}</h2>
      <ul class="links">
        ${known.map(
          ([name, url]) => html`
            <li key=${name}><a href=${url} rel="noreferrer">${texts.linkNames[name]}</a></li>
          `,
        )}
      </ul>
    </nav>
  `
}
