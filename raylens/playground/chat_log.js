// The questions and answers of a conversation.

import { html } from './vendor/htm-preact.js'
import { Outcome, Text } from './answer.js'
import { CopyButton } from './controls.js'
import { isKept } from './conversation.js'
import { THUMBNAIL } from './pictures.js'
import { tokensPerSecond } from './run.js'
import { strings } from './strings.js'

/**
 * @param {{
 *   turns: import('./conversation.js').Turn[],
 *   follow: ReturnType<typeof import('./scroll.js').useFollow>,
 *   onEdit: () => void,
 *   onRetry: () => void,
 *   onKeyWanted: () => void,
 *   children?: any,
 * }} props
 * `children` are shown in a conversation that has not begun.
 */
export function ChatLog({ turns, follow, onEdit, onRetry, onKeyWanted, children }) {
  const { chat } = strings
  const last = turns.at(-1)
  const isWorking = last?.run.state === 'working'
  // Assistive technology hears a complete answer once, not each token.
  return html`
    <div class="log-frame">
      <div
        class="log"
        role="log"
        aria-live="off"
        aria-label=${chat.log}
        aria-busy=${String(isWorking)}
        tabindex="0"
        ref=${follow.element}
        onScroll=${follow.onScroll}
      >
        ${turns.length === 0 && children}
        ${turns.map(
          (turn) => html`
            <${TurnView}
              key=${turn.id}
              turn=${turn}
              isLast=${turn === last}
              ...${{ onEdit, onRetry, onKeyWanted }}
            />
          `,
        )}
      </div>
      ${
        !follow.isFollowing &&
        html`
          <button type="button" class="to-end" onClick=${follow.follow}>${chat.toEnd}</button>
        `
      }
      <p class="hidden" role="status">
        ${isWorking ? chat.working : last?.run.state === 'done' ? chat.said(last.run.text) : ''}
      </p>
    </div>
  `
}

function TurnView({ turn, isLast, onEdit, onRetry, onKeyWanted }) {
  const { question, run } = turn
  const { chat } = strings
  const isOver = run.state !== 'working'
  return html`
    <article class="turn question" aria-label=${chat.you}>
      <${Thumbnails} files=${question.attachments} />
      ${
        question.text &&
        html`
          <p class="said">${question.text}</p>
        `
      }
      ${
        isLast &&
        isOver &&
        html`
          <div class="actions">
            <button type="button" class="quiet" onClick=${onEdit}>${chat.edit}</button>
          </div>
        `
      }
    </article>
    <article class="turn" aria-label=${run.model || chat.model}>
      <${Text} run=${run} active=${null} onActive=${() => {}} />
      ${
        run.isCut &&
        html`
          <p class="hint">${chat.cut}</p>
        `
      }
      <${Outcome} ...${{ run, onKeyWanted }} onRetry=${isLast ? onRetry : null} />
      ${
        isOver &&
        !isKept(turn) &&
        html`
          <p class="hint">${chat.leftOut}</p>
        `
      }
      <p class="hint figures-line">${figuresOf(run)}</p>
      ${
        isOver &&
        html`
          <div class="actions">
            ${run.text && html`<${CopyButton} getText=${() => run.text} />`}
            ${
              isLast &&
              !run.error &&
              html`
                <button type="button" class="quiet" onClick=${onRetry}>${chat.regenerate}</button>
              `
            }
          </div>
        `
      }
    </article>
  `
}

/** Return who answered, how fast, and how many tokens, in a line. */
function figuresOf(run) {
  const { chat, result, duration, number } = strings
  const speed = tokensPerSecond(run)
  const { usage } = run
  return [
    run.model,
    usage && result.tokenCounts(usage.prompt_tokens, usage.completion_tokens),
    run.firstMs !== null && chat.firstToken(duration(run.firstMs)),
    speed !== null && chat.speed(number(speed)),
    run.totalMs !== null && chat.total(duration(run.totalMs)),
  ]
    .filter(Boolean)
    .join(' · ')
}

/**
 * @param {{
 *   files: import('./attachments.js').Attachment[],
 *   onRemove?: (file: import('./attachments.js').Attachment) => void,
 * }} props
 */
export function Thumbnails({ files, onRemove }) {
  const { chat } = strings
  if (files.length === 0) return null
  return html`
    <ul class="thumbnails">
      ${files.map(
        (file) => html`
          <li key=${file.id}>
            <a href=${file.view} target="_blank" rel="noopener" title=${chat.about(file)}>
              <${Thumbnail} file=${file} />
            </a>
            ${
              onRemove &&
              html`
                <button
                  type="button"
                  class="remove"
                  aria-label=${chat.remove(file.name)}
                  onClick=${() => onRemove(file)}
                >
                  ×
                </button>
              `
            }
          </li>
        `,
      )}
    </ul>
  `
}

function Thumbnail({ file }) {
  const { chat } = strings
  const badge =
    file.kind === 'video' &&
    html`
      <span class="play">▶ ${file.seconds ? chat.length(file.seconds) : ''}</span>
    `
  return html`
    ${
      file.thumbnail
        ? html`
            <img
              src=${file.thumbnail}
              alt=${chat.about(file)}
              width=${THUMBNAIL.width}
              height=${THUMBNAIL.height}
            />
          `
        : html`
              <span class="no-thumbnail">${file.name}</span>
            `
    }
    ${badge}
  `
}
