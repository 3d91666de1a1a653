// The tab "Live": a camera or a video file, answered as it goes on.

import { html, useEffect, useMemo, useRef, useState } from './vendor/htm-preact.js'
import { Notice } from './controls.js'
import { useDrops } from './drops.js'
import { Recording } from './live_recording.js'
import { LiveLists, LiveResult } from './live_result.js'
import { LiveSession } from './live_session.js'
import { featureOf, LiveSettings, pipelineFields } from './live_settings.js'
import { frameOf, openCamera, openFile, SourceError } from './live_source.js'
import { SourceBar } from './live_source_bar.js'
import { Problem, RecordingTime, Tools } from './live_tools.js'
import { LiveView, useFullScreen, viewOf } from './live_view.js'
import { PictureError, readPicture } from './pictures.js'
import { useFrames } from './runs.js'
import { save, saveBlob } from './save.js'
import { strings } from './strings.js'
import { isPocket } from './task_settings.js'

const DEFAULT_PIPELINE = 'moondream'
/** Of 640×480. */
const DEFAULT_SIZE = 1
/** While somebody types or drags. */
const CHANGE_MS = 300

/**
 * @param {{
 *   isShown: boolean,
 *   server: any,
 *   schemas: any,
 *   health: any,
 *   isAway: boolean,
 *   onKeyWanted: () => void,
 *   onSnapshot: (picture: import('./pictures.js').Picture) => void,
 *   onRunning: (isRunning: boolean) => void,
 * }} props
 */
export function LiveTab(props) {
  const { isShown, server, schemas, health, isAway, onKeyWanted, onSnapshot, onRunning } = props
  const [pipelineId, setPipelineId] = useState(DEFAULT_PIPELINE)
  const [allValues, setAllValues] = useState({})
  const [choice, setChoice] = useState({ device: '', size: DEFAULT_SIZE, file: null })
  const [isMirrored, setMirrored] = useState(false)
  const [ownError, setError] = useState(null)
  const { session, start, stop, sendChange } = useSession()
  const stage = useRef(null)
  const video = useRef(null)
  const [isFull, toggleFull] = useFullScreen(stage)

  const pipelines = schemas?.pipelines ?? {}
  const pipeline = pipelines[pipelineId] ?? Object.values(pipelines)[0]
  const fields = useMemo(() => pipelineFields(pipeline), [pipeline])
  const values = allValues[pipeline?.id] ?? {}
  const isOpen = session?.isOpen ?? false
  const answering = session?.figures.model || values.model || server?.models[0]
  const hasResults = featureOf(fields, values) !== undefined
  const look = () => viewOf(session, isMirrored, hasResults)
  const recording = useRecording(() => ({ video: video.current, view: look() }), isOpen)
  useEffect(() => onRunning(isOpen), [isOpen])
  // A file that can't be played would fail at each start.
  useEffect(() => {
    if (session?.error instanceof SourceError) setChoice((old) => ({ ...old, file: null }))
  }, [session?.error])

  const change = (name, value) => {
    const changed = { ...values, [name]: value }
    setAllValues((old) => ({ ...old, [pipeline.id]: changed }))
    sendChange({ [name]: value })
  }
  const begin = (next = choice) => {
    if (isOpen || !pipeline) return
    setError(null)
    const openSource = () => (next.file ? openFile(next.file) : openCamera(next))
    start({ openSource, pipeline, fields, values })
  }
  const choose = (next) => {
    setChoice(next)
    if (next.file && next.file !== choice.file) begin(next)
  }
  const snapshot = async () => {
    setError(null)
    try {
      const blob = await frameOf(session.local)
      onSnapshot(await readPicture(blob, strings.live.snapshotName, server?.limits ?? null, null))
    } catch (error) {
      setError(error instanceof PictureError ? error : new PictureError(strings.errors.unexpected))
    }
  }
  const takeTransfer = ({ files: [file] }) => file && choose({ ...choice, file })
  const isDragging = useDrops({ takeTransfer }, isShown && !isOpen)
  const { live } = strings
  return html`
    <div class="live columns" hidden=${!isShown}>
      <div class="left">
        <section class="card picture" aria-labelledby="live-title">
          <h2 id="live-title" class="hidden">${live.title}</h2>
          <${SourceBar} choice=${choice} isOpen=${isOpen} onChange=${choose} />
          <div class=${isDragging ? 'stage dragging' : 'stage'} ref=${stage}>
            <${LiveView}
              view=${look()}
              videoRef=${video}
              veil=${veilOf(session)}
              onEmpty=${() => begin()}
            />
            ${recording.startedAt && html`<${RecordingTime} since=${recording.startedAt} />`}
          </div>
          <${Tools}
            ...${{ session, isMirrored, isFull, recording }}
            canStart=${pipeline !== undefined}
            onStart=${() => begin()}
            onStop=${stop}
            onMirror=${() => setMirrored(!isMirrored)}
            onFull=${toggleFull}
            onSnapshot=${snapshot}
          />
          ${!isOpen && html`<p class="hint">${live.privacy}</p>`}
        </section>
        <${LiveLists} session=${session} />
      </div>
      <div class="right">
        <${Problem} ...${{ session, ownError, isAway, onKeyWanted }} />
        <${LiveResult}
          session=${session}
          onSaveLog=${() => save(live.logName, 'application/jsonl', linesOf(session.log))}
        />
        <form
          class="card settings"
          hidden=${!pipeline}
          onSubmit=${(event) => event.preventDefault()}
          aria-labelledby="live-settings-title"
          novalidate
        >
          <h2 id="live-settings-title" class="hidden">${strings.settings.title}</h2>
          <${LiveSettings}
            ...${{ pipelines, pipeline, fields, values, health }}
            session=${isOpen ? session : null}
            onPipeline=${setPipelineId}
            onChange=${change}
          />
          ${isPocket(health, answering) && html`<${Notice} kind="note"><p>${strings.pocket}</p><//>`}
        </form>
      </div>
    </div>
  `
}

/** Return messages as JSON lines. */
const linesOf = (messages) => messages.map((message) => `${JSON.stringify(message)}\n`).join('')

/** The session of this tab, which ends if the page is left. */
function useSession() {
  const [session, setSession] = useState(null)
  const current = useRef(null)
  const changes = useRef({ timer: 0, values: {} })
  const update = useFrames()
  useEffect(() => {
    const onLeave = () => current.current?.stop()
    window.addEventListener('pagehide', onLeave)
    return () => window.removeEventListener('pagehide', onLeave)
  }, [])
  const start = (settings) => {
    current.current = new LiveSession(settings, update)
    setSession(current.current)
  }
  /** Send changed settings, a moment after the last change. */
  const sendChange = (values) => {
    clearTimeout(changes.current.timer)
    Object.assign(changes.current.values, values)
    changes.current.timer = setTimeout(() => {
      current.current?.change(changes.current.values)
      changes.current.values = {}
    }, CHANGE_MS)
  }
  return { session, start, stop: () => current.current.stop(), sendChange }
}

/** A recording, which ends with the session. */
function useRecording(look, isOpen) {
  const [recording, setRecording] = useState(null)
  const latest = useRef(look)
  latest.current = look
  const [savedAs, setSavedAs] = useState('')
  const start = () => {
    setSavedAs('')
    const onStop = (blob, name) => {
      saveBlob(name, blob)
      setSavedAs(name)
      setRecording(null)
    }
    setRecording(new Recording(() => latest.current(), onStop))
  }
  useEffect(() => {
    if (isOpen) setSavedAs('')
    else recording?.stop()
  }, [isOpen])
  return { startedAt: recording?.startedAt ?? null, savedAs, start, stop: () => recording.stop() }
}

function veilOf(session) {
  const { live } = strings
  if (session?.state === 'connecting') return session.local ? live.connecting : live.opening
  if (session?.state === 'waiting') return live.waiting
  return session?.state === 'live' && session.isPaused ? live.states.paused : ''
}
