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
 *   draft: import('./conversation.js').Question,
 *   isEditing: boolean,
 *   isWorking: boolean,
 *   isEarly: boolean,
 *   isAway: boolean,
 *   loading: number,
 *   problem: string,
 *   note: string,
 *   textRef: any,
 *   onText: (text: string) => void,
 *   onFiles: (files: File[]) => void,
 *   onRemove: (file: import('./attachments.js').Attachment) => void,
 *   onSend: () => void,
 *   onStop: () => void,
 *   onCancel: () => void,
 * }} props
 * `isEarly` says that someone tried to send before the last answer had ended. `loading` is the
 * number of files that are being read, `problem` why the message can't be sent.
 */
export function Composer(props) {
  const { draft, isEditing, isWorking, isEarly, isAway, loading, problem, note, textRef } = props
  const { onText, onFiles, onRemove, onSend, onStop, onCancel } = props
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
    if (event.key === 'Escape' && isEditing) onCancel()
  }
  const submit = (event) => {
    event.preventDefault()
    onSend()
  }
  const choose = (event) => {
    onFiles([...event.target.files])
    event.target.value = '' // the same file may be chosen again
  }
  return html`
    <form class="composer" onSubmit=${submit} aria-label=${chat.compose}>
      ${
        isEditing &&
        html`
          <p class="hint editing">
            ${chat.editing}
            <button type="button" class="quiet" onClick=${onCancel}>${chat.cancel}</button>
          </p>
        `
      }
      <${Thumbnails} files=${draft.attachments} onRemove=${onRemove} />
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
        onInput=${(event) => onText(event.target.value)}
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
