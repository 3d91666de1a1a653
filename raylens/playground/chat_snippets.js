// A conversation's request as code, for a terminal and Python. Each works when pasted.

import { bodyOf, filesOf } from './conversation.js'
import { call, keyOf, python, shell } from './snippets.js'
import { strings } from './strings.js'

/**
 * @typedef {object} ChatSource
 * @property {any} request
 * @property {string} root the server's address, with a slash at its end
 * @property {boolean} hasKey
 * @property {string} model that answered, or that would
 */

/** @type {Record<string, (source: ChatSource) => import('./snippets.js').Snippet>} */
export const CHAT_SNIPPETS = { curl, openai }

/** Stands for a file in a text. Nobody types characters of the private use area. */
const HOLE = /\ue000(\d+)\ue000/g
const hole = (index) => `\ue000${index}\ue000`
const KNOWN = new Set(['temperature', 'top_p', 'max_tokens'])

/** Return a request with holes for its files, and the files that it needs. */
function withHoles({ request }) {
  const files = filesOf(request)
  const { stream, stream_options, ...body } = bodyOf(
    request,
    (file) => file.address ?? hole(files.indexOf(file)),
  )
  return { body, files }
}

const addressOf = ({ example }, root) => `${root}playground/examples/${example}`

function notesOf(files, hasKey) {
  const own = files.filter(({ address, example }) => !address && !example)
  const names = [...new Set(own.map(({ name }) => name))]
  return [
    ...(names.length > 0 ? [strings.code.fileNote(names.join(', '))] : []),
    ...(hasKey ? [strings.code.keyNote] : []),
  ]
}

/** @param {ChatSource} source */
function curl(source) {
  const { request, root, hasKey } = source
  const { body, files } = withHoles(source)
  const examples = new Map(files.filter(({ example }) => example).map((file) => [file.name, file]))
  const downloads = [...examples.values()].map(
    (file) => `curl -sS -o ${shell(file.name)} ${shell(addressOf(file, root))}`,
  )
  const options = [
    "-H 'Content-Type: application/json'",
    ...(hasKey ? ['-H "Authorization: Bearer $RAYLENS_API_KEY"'] : []),
    '-d @- <<EOF',
  ]
  const json = JSON.stringify(body, null, 2).replace(/[\\$`]/g, '\\$&')
  const filled = json.replace(HOLE, (_, index) => {
    const { blob, name } = files[index]
    return `data:${blob.type};base64,$(base64 < ${shell(name)} | tr -d '\\n')`
  })
  const command = [`curl -sS ${shell(root + request.path)}`, ...options].join(' \\\n  ')
  const text = [...downloads, command, filled, 'EOF'].join('\n')
  return { text, notes: notesOf(files, hasKey) }
}

/** @param {ChatSource} source */
function openai(source) {
  const { root, hasKey } = source
  const { body, files } = withHoles(source)
  const { model, messages, ...settings } = body
  const entries = Object.entries(settings)
  const extra = Object.fromEntries(entries.filter(([name]) => !KNOWN.has(name)))
  const parameters = [
    `model=${python(source.model)}`,
    'messages=messages',
    ...entries
      .filter(([name]) => KNOWN.has(name))
      .map(([name, value]) => `${name}=${python(value)}`),
    ...(Object.keys(extra).length > 0 ? [`extra_body=${python(extra)}`] : []),
  ]
  const sent = files.filter(({ address }) => !address)
  const fill = (text) =>
    text.replace(new RegExp(`"${HOLE.source}"`, 'g'), (_, index) => {
      const { blob, name, example } = files[index]
      const read = example
        ? `urlopen(${python(addressOf(files[index], root))}).read()`
        : `open(${python(name)}, "rb").read()`
      return `data_url(${read}, ${python(blob.type)})`
    })
  const text = [
    ...(sent.length > 0 ? ['import base64'] : []),
    ...(hasKey ? ['import os'] : []),
    ...(sent.some(({ example }) => example) ? ['from urllib.request import urlopen'] : []),
    '',
    'from openai import OpenAI',
    '',
    ...(sent.length > 0 ? DATA_URL : []),
    ...call('client = OpenAI', [
      `base_url=${python(`${root}v1`)}`,
      `api_key=${keyOf(hasKey)}`,
    ]),
    'messages = [',
    ...messages.map((message) => `    ${fill(python(message))},`),
    ']',
    ...call('reply = client.chat.completions.create', parameters),
    'print(reply.choices[0].message.content)',
  ]
  return { text: text.join('\n').trimStart(), notes: notesOf(files, hasKey) }
}

const DATA_URL = [
  '',
  'def data_url(data, media_type):',
  '    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"',
  '',
  '',
]
