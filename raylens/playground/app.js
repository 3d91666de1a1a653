// The page: its tabs, and what all of them know of the server.

import { html, render, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { TabPanel } from './controls.js'
import { Header } from './header.js'
import { LiveTab } from './live_tab.js'
import { ask } from './server.js'
import { StatusTab } from './status_tab.js'
import { strings } from './strings.js'
import { getTheme, setTheme } from './theme.js'
import { TryTab } from './try_tab.js'

const POLL_MS = 10_000
const TABS = ['try', 'live', 'status']

function App() {
  const [tab, setTab] = useTab()
  const [keyVersion, setKeyVersion] = useState(0)
  const { state, health } = useHealth()
  const { server, schemas, error } = useServer(keyVersion, state)
  const keyRef = useRef(null)
  const onKeyWanted = () => {
    keyRef.current.open = true
    keyRef.current.scrollIntoView({ block: 'nearest' })
  }
  const [isRunning, setRunning] = useState(false)
  const [snapshot, setSnapshot] = useState(null)
  const hasLive = useRef(false)
  hasLive.current ||= tab === 'live'
  const labels = { ...strings.tabs, ...(isRunning ? { live: strings.live.running } : {}) }
  const tabs = TABS.map((id) => ({ id, label: labels[id] }))
  const takeSnapshot = (picture) => {
    setSnapshot(picture)
    setTab('try')
  }
  return html`<a class="skip" href="#tab-panel" onClick=${skip}>${strings.skip}</a>
    <${Header}
      ...${{ tabs, tab, state, keyRef }}
      onTab=${setTab}
      onKey=${() => setKeyVersion((version) => version + 1)}
    />
    <main><h1 class="hidden">${strings.appName}</h1>
      <${TabPanel} id="tab" current=${tab}>
        <${TryTab}
          ...${{ server, schemas, health, onKeyWanted }}
          serverError=${error}
          isShown=${tab === 'try'}
          given=${snapshot}
        />
        ${
          hasLive.current &&
          html`
            <${LiveTab}
              ...${{ server, schemas, health, onKeyWanted }}
              serverError=${error}
              isShown=${tab === 'live'}
              onSnapshot=${takeSnapshot}
              onRunning=${setRunning}
            />
          `
        }
        ${
          tab === 'status' &&
          html`
            <${StatusTab} ...${{ keyVersion, onKeyWanted }} />
          `
        }
      <//>
    </main>`
}

/** Go to the content without a change of the hash, which is the tab's. */
function skip(event) {
  event.preventDefault()
  document.getElementById('tab-panel').focus()
}

/** The current tab, which is the URL's hash. */
function useTab() {
  const read = () => {
    const id = location.hash.slice(1)
    return TABS.includes(id) ? id : TABS[0]
  }
  const [tab, setTab] = useState(read)
  useEffect(() => {
    const onHash = () => setTab(read())
    window.addEventListener('hashchange', onHash)
    return () => window.removeEventListener('hashchange', onHash)
  }, [])
  return [
    tab,
    (id) => {
      location.hash = id
    },
  ]
}

/** The state of the server and of its models, asked for while the page is visible. */
function useHealth() {
  const [known, setKnown] = useState({ state: 'unknown', health: null })
  useEffect(() => {
    let timer = 0
    const poll = async () => {
      clearTimeout(timer)
      try {
        const health = await ask('health')
        setKnown({ state: health.status, health })
      } catch {
        setKnown((old) => ({ ...old, state: 'away' }))
      }
      if (!document.hidden) timer = setTimeout(poll, POLL_MS)
    }
    const onVisible = () => document.hidden || poll()
    document.addEventListener('visibilitychange', onVisible)
    poll()
    return () => {
      clearTimeout(timer)
      document.removeEventListener('visibilitychange', onVisible)
    }
  }, [])
  return known
}

/**
 * What the server tells about its limits and settings. Asked again with another key, or once it is
 * back.
 */
function useServer(keyVersion, state) {
  const [known, setKnown] = useState({ server: null, schemas: null, error: null })
  const isAway = state === 'away'
  useEffect(() => {
    if (isAway) return undefined
    const abort = new AbortController()
    const { signal } = abort
    Promise.all([ask('api/v1/playground', { signal }), ask('api/v1/pipelines/schemas', { signal })])
      .then(([server, schemas]) => setKnown({ server, schemas, error: null }))
      .catch((error) => error.name === 'AbortError' || setKnown((old) => ({ ...old, error })))
    return () => abort.abort()
  }, [keyVersion, isAway])
  return known
}

setTheme(getTheme())
render(
  html`
    <${App} />
  `,
  document.getElementById('app'),
)
