// The settings of a conversation: the model, the system prompt, sampling.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { Notice } from './controls.js'
import { Form } from './form.js'
import { strings } from './strings.js'
import { ModelSelect } from './task_settings.js'

const wide = matchMedia('(min-width: 1000px)')

/**
 * @param {{
 *   able: string[],
 *   chosen: string,
 *   isKnown: boolean,
 *   info: any,
 *   system: string,
 *   fields: import('./form.js').Field[],
 *   values: Record<string, any>,
 *   onModel: (model: string) => void,
 *   onSystem: (text: string) => void,
 *   onChange: (name: string, value: any) => void,
 *   onReset: () => void,
 * }} props
 * `isKnown` says whether the server has told about its models. `info` is what /health tells of the model that answers.
 */
export function ChatSettings(props) {
  const { able, chosen, isKnown, info, isPocket, system, fields, values } = props
  const { onModel, onSystem, onChange, onReset } = props
  const [isOpen, setOpen] = useState(wide.matches)
  useEffect(() => {
    const onChange = () => wide.matches && setOpen(true)
    wide.addEventListener('change', onChange)
    return () => wide.removeEventListener('change', onChange)
  }, [])
  const { chat, settings } = strings
  const changed = fields.some(({ name, default: usual }) => (values[name] ?? usual) !== usual)
  return html`
    <details class="card settings" open=${isOpen} onToggle=${(event) => setOpen(event.target.open)}>
      <summary><h2>${settings.title}</h2></summary>
      <div class="own">
        ${
          isKnown && able.length === 0
            ? html`
                  <p class="muted">${chat.noModels}</p>
                `
            : html`
                <${ModelSelect}
                  id="chat-model"
                  models=${able}
                  value=${chosen}
                  onChange=${onModel}
                />
              `
        }
        ${
          info?.loaded &&
          html`
            <p class="hint">${chat.takes(info.max_pictures, info.frames_as_pictures)}</p>
          `
        }
        ${isPocket && html`<${Notice} kind="note"><p>${strings.pocket}</p><//>`}
        <div class="field">
          <label for="chat-system">${chat.system}</label>
          <textarea
            id="chat-system"
            rows="2"
            value=${system}
            aria-describedby="chat-system-hint"
            onInput=${(event) => onSystem(event.target.value)}
          ></textarea>
          <p class="hint" id="chat-system-hint">${chat.systemHelp}</p>
        </div>
        <${Form} prefix="chat" ...${{ fields, values, onChange }} />
        ${
          changed &&
          html`
            <button type="button" class="quiet" onClick=${onReset}>${settings.reset}</button>
          `
        }
      </div>
    </details>
  `
}
