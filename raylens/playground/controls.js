// Small controls that several parts of the page share.

import { html, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { strings } from './strings.js'

const COPIED_MS = 2000

/**
 * Tabs with arrow keys (WAI-ARIA Authoring Practices, "Tabs"). Their panel is `id`-panel.
 * @param {{
 *   id: string,
 *   label: string,
 *   tabs: {id: string, label: string}[],
 *   current: string,
 *   onSelect: (id: string) => void,
 *   class?: string,
 * }} props
 */
export function Tabs({ id, label, tabs, current, onSelect, class: name = 'tabs' }) {
  const list = useRef(null)
  const onKeyDown = (event) => {
    const index = tabs.findIndex((tab) => tab.id === current)
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[
      event.key
    ]
    if (next === undefined) return
    event.preventDefault()
    const target = tabs[(next + tabs.length) % tabs.length]
    onSelect(target.id)
    list.current.querySelector(`#${id}-${target.id}`).focus()
  }
  return html`
    <div role="tablist" class=${name} aria-label=${label} ref=${list} onKeyDown=${onKeyDown}>
      ${tabs.map(
        (tab) => html`
          <button
            key=${tab.id}
            type="button"
            role="tab"
            id=${`${id}-${tab.id}`}
            aria-selected=${String(tab.id === current)}
            aria-controls=${`${id}-panel`}
            tabindex=${tab.id === current ? 0 : -1}
            onClick=${() => onSelect(tab.id)}
          >
            ${tab.label}
          </button>
        `,
      )}
    </div>
  `
}

/** @param {{id: string, current: string, class?: string, children?: any}} props */
export function TabPanel({ id, current, class: name, children }) {
  return html`
    <div
      role="tabpanel"
      id=${`${id}-panel`}
      class=${name}
      aria-labelledby=${`${id}-${current}`}
      tabindex="0"
    >
      ${children}
    </div>
  `
}

/**
 * A choice of which all options are visible.
 * @param {{
 *   name: string,
 *   label: string,
 *   options: {id: string, label: string, isDisabled?: boolean}[],
 *   value: string,
 *   onChange: (id: string) => void,
 *   class?: string,
 * }} props
 */
export function Segmented({ name, label, options, value, onChange, class: look = '' }) {
  return html`
    <fieldset class=${`segmented ${look}`}>
      <legend class="hidden">${label}</legend>
      ${options.map(
        (option) => html`
          <label key=${option.id}>
            <input
              type="radio"
              name=${name}
              value=${option.id}
              checked=${option.id === value}
              disabled=${option.isDisabled}
              onChange=${() => onChange(option.id)}
            />
            <span>${option.label}</span>
          </label>
        `,
      )}
    </fieldset>
  `
}

/**
 * A sentence about something that went wrong, or that is worth knowing.
 * @param {{kind: 'error' | 'note', children?: any}} props
 */
export function Notice({ kind, children }) {
  return html`
    <div class=${`notice ${kind}`} role=${kind === 'error' ? 'alert' : undefined}>${children}</div>
  `
}

/** That the server is away. */
export function AwayNotice() {
  return html`<${Notice} kind="note"><p role="status">${strings.errors.awayNow}</p><//>`
}

/**
 * What went wrong, and the way out if that is another key; nothing without an error.
 * @param {{
 *   error: any,
 *   onKeyWanted: () => void,
 *   onClose?: (error: null) => void,
 *   text?: any,
 *   children?: any,
 * }} props
 * `text` replaces the error's message. `children` are further buttons.
 */
export function ErrorNotice({ error, onKeyWanted, onClose, text, children }) {
  const { errors } = strings
  if (!error) return null
  return html`<${Notice} kind="error">
    <p>${text ?? error.message}</p>
    <div class="actions">
      ${
        error.needsKey &&
        html`
          <button type="button" onClick=${onKeyWanted}>${errors.enterKey}</button>
        `
      }
      ${children}
      ${
        onClose &&
        html`
          <button type="button" onClick=${() => onClose(null)}>${errors.close}</button>
        `
      }
    </div>
  <//>`
}

/**
 * A field for a line of text.
 * @param {{id: string, label: string, hint: string, error?: string}} props
 * `error` says what is wrong with it. Further attributes are those of its input.
 */
export function TextField({ id, label, hint, error, ...input }) {
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      <input
        id=${id}
        type="text"
        autocomplete="off"
        aria-invalid=${error ? 'true' : undefined}
        aria-describedby=${error ? `${id}-error ${id}-hint` : `${id}-hint`}
        ...${input}
      />
      ${error && html`<p class="problem" id=${`${id}-error`} role="alert">${error}</p>`}
      <p class="hint" id=${`${id}-hint`}>${hint}</p>
    </div>
  `
}

/** @param {{label?: string, getText: () => string | Promise<string>}} props */
export function CopyButton({ label = strings.code.copy, getText }) {
  const [outcome, setOutcome] = useState('')
  useEffect(() => {
    if (!outcome) return undefined
    const timer = setTimeout(() => setOutcome(''), COPIED_MS)
    return () => clearTimeout(timer)
  }, [outcome])
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(await getText())
      setOutcome(strings.code.copied)
    } catch {
      setOutcome(strings.code.copyFailed) // no permission, or a page over plain http
    }
  }
  return html`
    <button type="button" class="quiet copy" onClick=${copy} aria-live="polite">
      ${outcome || label}
    </button>
  `
}

/**
 * @param {{label: string, text: string, getText?: () => string | Promise<string>}} props
 * `getText` returns what is copied, if that is more than is shown.
 */
export function CodeBlock({ label, text, getText = () => text }) {
  return html`
    <div class="code">
      <${CopyButton} getText=${getText} />
      <pre tabindex="0" aria-label=${label}><code>${text}</code></pre>
    </div>
  `
}
