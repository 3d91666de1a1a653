// The page: its tabs, and what all of them know of the server.

import { html, render, useEffect, useRef, useState } from './vendor/htm-preact.js'
import { ChatTab } from './chat_tab.js'
import { CompareTab } from './compare_tab.js'
import { ErrorNotice, TabPanel } from './controls.js'
import { Header } from './header.js'
import { JobsTab } from './jobs_tab.js'
import { LiveTab } from './live_tab.js'
import { patiently } from './patience.js'
import { useShrinking } from './picture_input.js'
import { usePolling } from './polling.js'
import { ask } from './server.js'
import { StatusTab } from './status_tab.js'
import { strings } from './strings.js'
import { getTheme, setTheme } from './theme.js'
import { TryTab } from './try_tab.js'

const POLL_MS = 10_000
const TABS = ['try', 'compare', 'chat', 'live', 'jobs', 'status']
/** Tabs whose own requests show at once that a key is missing. */
const SHOW_KEY_ERRORS = ['jobs', 'status']

function App() {
  const [tab, setTab] = useTab()
  const [keyVersion, setKeyVersion] = useState(0)
  const { state, health } = useHealth()
  const { server, schemas, serverError } = useServer(keyVersion, state)
  const keyRef = useRef(null)
  const onKeyWanted = () => {
    keyRef.current.open = true
    keyRef.current.scrollIntoView({ block: 'nearest' })
  }
  const [source, setSource] = useState({ picture: null })
  const shrinking = useShrinking()
  const known = { server, schemas, serverError, health, isAway: state === 'away' }
  const shared = { ...known, shrinking, source, onSource: setSource, onKeyWanted }
  const visited = useVisited(tab)
  const [isRunning, setRunning] = useState(false)
  const labels = { ...strings.tabs, ...(isRunning ? { live: strings.live.running } : {}) }
  const tabs = TABS.map((id) => ({ id, label: labels[id] }))
  const takeSnapshot = (picture) => {
    setSource({ picture })
    setTab('try')
  }
  const show = (id, Tab, own) =>
    visited.has(id) &&
    html`
      <${Tab} ...${shared} ...${own} isShown=${tab === id} />
    `
  return html`<a class="skip" href="#tab-panel" onClick=${skip}>${strings.skip}</a>
    <${Header}
      ...${{ tabs, tab, state, keyRef }}
      onTab=${setTab}
      onKey=${() => setKeyVersion((version) => version + 1)}
    />
    <main><h1 class="hidden">${strings.appName}</h1>
      ${
        serverError?.needsKey &&
        !SHOW_KEY_ERRORS.includes(tab) &&
        html`
          <${ErrorNotice} error=${serverError} onKeyWanted=${onKeyWanted} />
        `
      }
      <${TabPanel} id="tab" current=${tab}>
        ${show('try', TryTab)}
        ${show('compare', CompareTab)}
        ${show('chat', ChatTab)}
        ${show('live', LiveTab, { onSnapshot: takeSnapshot, onRunning: setRunning })}
        ${show('jobs', JobsTab, { keyVersion })}
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

/** The tabs that have been opened. They stay, so that what is in them does. */
function useVisited(tab) {
  const visited = useRef(new Set())
  visited.current.add(tab)
  return visited.current
}

/** The state of the server and of its models. */
function useHealth() {
  const { answer: health, error } = usePolling('health', POLL_MS)
  return { state: error ? 'away' : (health?.status ?? 'unknown'), health }
}

/**
 * What the server tells about its limits and settings. Asked again until it does, with another key,
 * and once it is back.
 */
function useServer(keyVersion, state) {
  const [known, setKnown] = useState({ server: null, schemas: null, serverError: null })
  const isAway = state === 'away'
  useEffect(() => {
    if (isAway) return undefined
    const abort = new AbortController()
    const { signal } = abort
    const note = (error) => {
      if (!signal.aborted) setKnown((old) => ({ ...old, serverError: error }))
    }
    const asked = ['api/v1/playground', 'api/v1/pipelines/schemas'].map((path) =>
      patiently(() => ask(path, { signal }), signal, note),
    )
    Promise.all(asked).then(
      ([server, schemas]) => setKnown({ server, schemas, serverError: null }),
      note,
    )
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
