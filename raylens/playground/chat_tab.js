// The tab "Chat": a conversation about pictures and videos.

import { html, useEffect, useState } from './vendor/htm-preact.js'
import { fromPicture, refusal } from './attachments.js'
import { ChatLog } from './chat_log.js'
import { ChatSettings } from './chat_settings.js'
import { ChatCode, ChatJson } from './chat_views.js'
import { Composer } from './composer.js'
import { ErrorNotice, TabPanel, Tabs } from './controls.js'
import { isKept, useConversation } from './conversation.js'
import { useDraft } from './draft.js'
import { useDrops } from './drops.js'
import { EXAMPLES } from './picture_files.js'
import { Example } from './picture_input.js'
import { useFollow } from './scroll.js'
import { strings } from './strings.js'
import { abilitiesOf, isPocket, modelsFor, useFields } from './task_settings.js'
import { changedSettings, fieldsOf, promptOf } from './tasks.js'

const VIEWS = ['chat', 'json', 'code']
const MAX_TOKENS = 'max_tokens'

/** @param {import('./try_tab.js').Props} props */
export function ChatTab(props) {
  const { isShown, server, schemas, health, isAway, source, onKeyWanted } = props
  const [view, setView] = useState('chat')
  const [model, setModel] = useState('')
  const [system, setSystem] = useState('')
  const [values, setValues] = useState({})
  const { turns, isWorking, ask, stop, clear, restore } = useConversation()
  const draft = useDraft(server?.limits ?? null)
  const follow = useFollow()

  const able = modelsFor(health, 'chat')
  const chosen = able.includes(model) ? model : ''
  const answering = chosen || (able.includes(health?.active_model) ? health.active_model : able[0])
  const info = health?.models[answering]
  const fields = chatFields(useFields({ server, schemas }), abilitiesOf(health, chosen))
  const settings = {
    system,
    body: {
      // Without a limit, the server lets a chat's answer be as long as the model can write.
      ...Object.fromEntries(
        fields.filter(({ name }) => name === MAX_TOKENS).map((field) => [MAX_TOKENS, field.default]),
      ),
      ...changedSettings(fields, values, ({ hints }) => hints.request.replace('settings.', '')),
      ...(chosen ? { model: chosen } : {}),
    },
  }
  const earlier = draft.isEditing ? turns.slice(0, -1) : turns
  const problem = problemOf(earlier, draft, system, server?.limits ?? null, answering ?? '', info)

  const [isEarly, setEarly] = useState(false)
  useEffect(() => setEarly(false), [isWorking])
  const send = () => {
    const { text, attachments, loading } = draft
    const hasContent = text.trim() !== '' || attachments.length > 0
    setEarly(isWorking && hasContent)
    if (isWorking || loading > 0 || problem || !hasContent) return
    ask(earlier, { text, attachments }, settings)
    draft.finish()
    follow.follow()
  }
  const retry = () => {
    ask(turns.slice(0, -1), turns.at(-1).question, settings)
    follow.follow()
  }
  const edit = () => draft.edit(turns.at(-1).question)
  const startAgain = () => {
    draft.cancel()
    clear()
    setView('chat')
    draft.focus()
  }
  const isDragging = useDrops({ takeFiles: draft.addFiles, takeText: draft.addText }, isShown)

  const { chat, result } = strings
  const last = turns.at(-1)?.run
  const views = {
    chat: () => html`
      <${ChatLog} ...${{ turns, follow, onKeyWanted }} onEdit=${edit} onRetry=${retry}>
        <${Beginning}
          picture=${source.picture}
          onPicture=${(picture) => draft.add(fromPicture(picture))}
          onExample=${draft.addExample}
          onRestore=${restore}
        />
      <//>
      <${Composer}
        ...${{ draft, isWorking, isEarly, isAway, problem }}
        note=${noteOf(draft.attachments, answering, info)}
        onSend=${send}
        onStop=${stop}
      />
    `,
    json: () => html`
      <${ChatJson} run=${last} />
    `,
    code: () => html`
      <${ChatCode} run=${last} model=${answering} />
    `,
  }
  const noRequest = () => html`
    <p class="muted">${chat.noRequest}</p>
  `
  const shown = view === 'chat' || last ? views[view] : noRequest
  return html`
    <div class="columns chat" hidden=${!isShown}>
      <section
        class=${isDragging ? 'card talk dragging' : 'card talk'}
        aria-labelledby="chat-title"
      >
        <div class="bar">
          <h2 id="chat-title">${chat.title}</h2>
          <${Tabs}
            id="chat-view"
            class="subtabs"
            label=${chat.views}
            tabs=${VIEWS.map((id) => ({ id, label: chat[id] ?? result[id] }))}
            current=${view}
            onSelect=${setView}
          />
          <button type="button" disabled=${turns.length === 0} onClick=${startAgain}>
            ${chat.startAgain}
          </button>
        </div>
        <${ErrorNotice}
          error=${draft.error}
          onKeyWanted=${onKeyWanted}
          onClose=${draft.setError}
        />
        <${TabPanel} id="chat-view" class=${`view-${view}`} current=${view}>${shown()}<//>
        ${
          isDragging &&
          html`
            <p class="veil">${chat.dropNow}</p>
          `
        }
      </section>
      <${ChatSettings}
        ...${{ able, chosen, system, fields, values, info }}
        isKnown=${health !== null}
        isPocket=${isPocket(health, answering)}
        onModel=${setModel}
        onSystem=${setSystem}
        onChange=${(name, value) => setValues((old) => ({ ...old, [name]: value }))}
        onReset=${() => setValues({})}
      />
    </div>
  `
}

/** The settings of a question are also those of a chat. */
function chatFields(fields, abilities) {
  const asked = fieldsOf(fields, 'query', abilities)
  return asked.filter((field) => field !== promptOf(asked))
}

function problemOf(earlier, draft, system, limits, model, info) {
  const kept = [...earlier.filter(isKept).map(({ question }) => question), draft]
  const files = kept.flatMap(({ attachments }) => attachments)
  const answers = earlier.map(({ run }) => run.text)
  const chars = [system, ...answers, ...kept.map(({ text }) => text)].join('').length
  return refusal(files, chars, limits, model, info)
}

/** Return what a model makes of the attachments, if that is not obvious. */
function noteOf(attachments, model, info) {
  const frames = info?.frames_as_pictures ?? null
  const hasVideo = attachments.some(({ kind }) => kind === 'video')
  return hasVideo && frames !== null ? strings.chat.framesOnly(model, frames) : ''
}

function Beginning({ picture, onPicture, onExample, onRestore }) {
  const { chat, picture: texts } = strings
  return html`
    <div class="beginning">
      <p class="muted">${chat.empty}</p>
      <ul class="examples" aria-label=${chat.examples}>
        ${
          picture &&
          !picture.example &&
          html`
            <li>
              <${Example}
                src=${picture.thumbnail}
                label=${picture.name}
                onClick=${() => onPicture(picture)}
              />
            </li>
          `
        }
        ${EXAMPLES.map(
          ({ id, file }) => html`
            <li key=${id}>
              <${Example}
                src=${`playground/examples/${file}`}
                label=${texts[id]}
                onClick=${() => onExample(file)}
              />
            </li>
          `,
        )}
      </ul>
      ${
        onRestore &&
        html`
          <button type="button" class="quiet" onClick=${onRestore}>${chat.restore}</button>
        `
      }
    </div>
  `
}
