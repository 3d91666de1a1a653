// The bar at the top: tabs, the server's state, the key, the theme.

import { html, useRef, useState } from './vendor/htm-preact.js'
import { Tabs, TextField } from './controls.js'
import { getKey, root, setKey } from './server.js'
import { strings } from './strings.js'
import { getTheme, setTheme, THEMES } from './theme.js'

/** What a header may carry: visible ASCII. Blanks around a key that was pasted are dropped. */
const KEY_PATTERN = '\\s*[!-~]+\\s*'

/**
 * @param {{
 *   tabs: {id: string, label: string}[],
 *   tab: string,
 *   onTab: (id: string) => void,
 *   state: string,
 *   keyRef: any,
 *   onKey: () => void,
 * }} props
 */
export function Header({ tabs, tab, onTab, state, keyRef, onKey }) {
  return html`
    <header class="top">
      <a class="brand" href="#try">
        <img src="playground/icon.svg" alt="" width="24" height="24" />
        ${strings.appName}
      </a>
      <${Tabs} id="tab" label=${strings.tabs.label} tabs=${tabs} current=${tab} onSelect=${onTab} />
      <div class="tools">
        <span class=${`state ${state}`} role="status">${strings.state[state]}</span>
        <${KeyMenu} detailsRef=${keyRef} onKey=${onKey} />
        <${ThemeSelect} />
        <a class="docs" href=${`${root}docs`}>${strings.docs}</a>
      </div>
    </header>
  `
}

function ThemeSelect() {
  const [theme, setChosen] = useState(getTheme)
  const choose = (next) => {
    setTheme(next)
    setChosen(next)
  }
  return html`
    <select
      class="theme"
      aria-label=${strings.theme.label}
      onChange=${(event) => choose(event.target.value)}
    >
      ${THEMES.map(
        (id) => html`
          <option key=${id} value=${id} selected=${id === theme}>${strings.theme[id]}</option>
        `,
      )}
    </select>
  `
}

function KeyMenu({ detailsRef, onKey }) {
  const { key: texts } = strings
  const [hasKey, setHasKey] = useState(getKey() !== '')
  const form = useRef(null)
  const use = (key) => {
    setKey(key.trim())
    setHasKey(key.trim() !== '')
    detailsRef.current.open = false
    form.current.reset()
    onKey()
  }
  const onToggle = (event) => event.target.open && form.current.elements.key.focus()
  const onKeyDown = (event) => {
    if (event.key !== 'Escape') return
    detailsRef.current.open = false
    detailsRef.current.querySelector('summary').focus()
  }
  return html`
    <details class="menu" ref=${detailsRef} onToggle=${onToggle} onKeyDown=${onKeyDown}>
      <summary>${hasKey ? texts.present : texts.button}</summary>
      <form
        class="popup"
        ref=${form}
        onSubmit=${(event) => {
          event.preventDefault()
          use(form.current.elements.key.value)
        }}
      >
        <${TextField}
          id="key"
          label=${texts.label}
          hint=${texts.help}
          name="key"
          type="password"
          spellcheck="false"
          required
          pattern=${KEY_PATTERN}
          title=${texts.signs}
        />
        <div class="actions">
          <button type="submit" class="primary">${texts.save}</button>
          ${
            hasKey &&
            html`
              <button type="button" onClick=${() => use('')}>${texts.forget}</button>
            `
          }
        </div>
      </form>
    </details>
  `
}
