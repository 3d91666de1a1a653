// Where a message is written: its text, pictures and videos.

import { html, useLayoutEffect, useRef } from './vendor/htm-preact.js'
import { Thumbnails } from './chat_log.js'
import { AwayNotice, Notice } from './controls.js'
import { ACCEPTED } from './picture_input.js'
import { strings } from './strings.js'

const ACCEPTED_FILES = `${ACCEPTED},video/*,.mkv,.avi`
const MAX_HEIGHT_PX = 220

/**
 * @param {{
 *   draft: ReturnType<typeof import('./draft.js').useDraft>,
 *   isWorking: boolean,
 *   isEarly: boolean,
 *   isAway: boolean,
 *   problem: string,
 *   note: string,
 *   onSend: () => void,
 *   onStop: () => void,
 * }} props
 * `isEarly` says that someone tried to send before the last answer had ended, `problem` why the
 * message can't be sent.
 */
export function Composer({ draft, isWorking, isEarly, isAway, problem, note, onSend, onStop }) {
  const { isEditing, loading, textRef } = draft
  const { chat } = strings
  const chooser = useRef(null)
  useLayoutEffect(() => {
    const { current } = textRef
    current.style.height = 'auto'
    current.style.height = `${Math.min(current.scrollHeight + 2, MAX_HEIGHT_PX)}px`
  }, [draft.text])
  const onKeyDown = (event) => {
    // An input method takes Enter for itself.
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault()
      onSend()
    }
    if (event.key === 'Escape' && isEditing) draft.cancel()
  }
  const submit = (event) => {
    event.preventDefault()
    onSend()
  }
  const choose = (event) => {
    draft.addFiles([...event.target.files])
    event.target.value = '' // the same file may be chosen again
  }
  return html`
    <form class="composer" onSubmit=${submit} aria-label=${chat.compose}>
      ${
        isEditing &&
        html`
          <p class="hint editing">
            ${chat.editing}
            <button type="button" class="quiet" onClick=${draft.cancel}>${chat.cancel}</button>
          </p>
        `
      }
      <${Thumbnails} files=${draft.attachments} onRemove=${draft.remove} />
      ${
        loading > 0 &&
        html`
          <p class="hint working" role="status">${chat.loading(loading)}</p>
        `
      }
      ${problem && html`<${Notice} kind="note"><p role="status">${problem}</p><//>`}
      ${isAway && !isWorking && html`<${AwayNotice} />`}
      ${
        !problem &&
        note &&
        html`
          <p class="hint" role="status">${note}</p>
        `
      }
      ${
        isEarly &&
        html`
          <p class="hint" role="status">${chat.early}</p>
        `
      }
      <label class="hidden" for="chat-text">${chat.message}</label>
      <textarea
        id="chat-text"
        rows="2"
        enterkeyhint="send"
        placeholder=${chat.placeholder}
        aria-describedby="chat-shortcut"
        ref=${textRef}
        value=${draft.text}
        onInput=${(event) => draft.setText(event.target.value)}
        onKeyDown=${onKeyDown}
      ></textarea>
      <div class="bar">
        <input
          type="file"
          class="hidden"
          ref=${chooser}
          multiple
          accept=${ACCEPTED_FILES}
          tabindex="-1"
          aria-label=${chat.choose}
          onChange=${choose}
        />
        <button type="button" onClick=${() => chooser.current.click()}>${chat.choose}</button>
        <span class="muted shortcut" id="chat-shortcut">${chat.shortcut}</span>
        ${
          isWorking
            ? html`
                <button type="button" key="stop" class="primary send" onClick=${onStop}>
                  ${strings.run.stop}
                </button>
              `
            : html`
                  <button type="submit" key="send" class="primary send">${chat.send}</button>
                `
        }
      </div>
    </form>
  `
}
