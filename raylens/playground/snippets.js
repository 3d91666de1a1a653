// The same request as code, for a terminal, Python and JavaScript. Each works when pasted.

import { strings } from './strings.js'

const CAPTION_PROMPTS = {
  short: 'Caption this image in one short sentence.',
  normal: 'Describe this image.',
  long: 'Describe this image in detail.',
}
const STREAMING = new Set(['stream', 'stream_options'])

/**
 * What a snippet needs to know.
 * @typedef {object} Source
 * @property {import('./tasks.js').Request} request
 * @property {import('./pictures.js').Picture} picture
 * @property {string} root the server's address, with a slash at its end
 * @property {boolean} hasKey
 * @property {string} model that answered, or that would
 */

/** @typedef {{text: string, notes: string[]}} Snippet */

/** @type {Record<string, (source: Source) => Snippet>} */
export const SNIPPETS = { curl, moondream, openai, javascript }

/** @param {Source} source */
function fieldsOf({ request }) {
  return Object.entries(request.body).filter(([name]) => !STREAMING.has(name))
}

/** Return where the picture comes from; empty if it is a file. */
function addressOf({ picture, root }) {
  return picture.address ?? (picture.example ? `${root}playground/examples/${picture.example}` : '')
}

function notesOf(source, ...more) {
  const { picture, hasKey } = source
  const notes = addressOf(source) ? [] : [strings.code.fileNote(picture.name)]
  if (hasKey) notes.push(strings.code.keyNote)
  return [...notes, ...more.filter(Boolean)]
}

/** @param {string} text */
export const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`

/** @param {Source} source @returns {Snippet} */
function curl(source) {
  const { request, picture, root, hasKey } = source
  const address = addressOf(source)
  const lines = []
  if (address) lines.push(`curl -sS -o ${shell(picture.name)} ${shell(address)}`)
  const file = picture.name.replace(/["\\]/g, '\\$&')
  const options = [
    ...(hasKey ? ['-H "Authorization: Bearer $RAYLENS_API_KEY"'] : []),
    `-F ${shell(`file=@"${file}"`)}`,
    // --form-string, because -F reads @ and < at the start of a value.
    ...fieldsOf(source).map(
      ([name, value]) => `--form-string ${shell(`${name}=${asText(value)}`)}`,
    ),
  ]
  lines.push([`curl -sS ${shell(root + request.path)}`, ...options].join(' \\\n  '))
  return { text: lines.join('\n'), notes: notesOf(source) }
}

const asText = (value) => (typeof value === 'string' ? value : JSON.stringify(value))

/** Return a value as a Python literal. */
export function python(value) {
  if (value === null || value === undefined) return 'None'
  if (typeof value === 'boolean') return value ? 'True' : 'False'
  if (Array.isArray(value)) return `[${value.map(python).join(', ')}]`
  if (typeof value === 'object') {
    return `{${Object.entries(value)
      .map(([name, item]) => `${JSON.stringify(name)}: ${python(item)}`)
      .join(', ')}}`
  }
  return JSON.stringify(value) // strings and numbers look the same
}

/** Return the imports and the line that opens the picture as `file`. */
function pythonFile(source) {
  const address = addressOf(source)
  return address
    ? {
        imports: ['from urllib.request import urlopen'],
        opened: `file = urlopen(${python(address)})`,
      }
    : { imports: [], opened: `file = open(${python(source.picture.name)}, "rb")` }
}

/** Return a call in Python, with each argument on a line of its own. */
export const call = (name, parameters) => [
  `${name}(`,
  ...parameters.map((parameter) => `    ${parameter},`),
  ')',
]

export const keyOf = (hasKey) => (hasKey ? 'os.environ["RAYLENS_API_KEY"]' : '"none"')

/** @param {Source} source @returns {Snippet} */
function moondream(source) {
  const { request, root, hasKey } = source
  const { model, settings, recipe, length, question, object, reasoning } = request.body
  const { imports, opened } = pythonFile(source)
  const client = [
    `endpoint=${python(`${root}v1`)}`,
    ...(hasKey ? [`api_key=${keyOf(hasKey)}`] : []),
    ...(model ? [`model=${python(model)}`] : []),
  ]
  const options = [
    'picture',
    ...[question, object].filter((text) => text !== undefined).map(python),
    ...(length ? [`length=${python(length)}`] : []),
    ...(reasoning ? ['reasoning=True'] : []),
    ...(settings ? [`settings=${python(settings)}`] : []),
  ]
  const result = {
    caption: '["caption"]',
    query: '["answer"]',
    detect: '["objects"]',
    point: '["points"]',
  }[request.task]
  const text = [
    'import io',
    ...(hasKey ? ['import os'] : []),
    ...imports,
    '',
    'import moondream',
    'from PIL import Image, ImageOps',
    '',
    ...call('model = moondream.vl', client),
    opened,
    'picture = ImageOps.exif_transpose(Image.open(io.BytesIO(file.read())))',
    `print(model.${request.task}(${options.join(', ')})${result})`,
  ]
  return { text: text.join('\n'), notes: notesOf(source, recipe && strings.code.noRecipe) }
}

/** @param {Source} source @returns {Snippet} */
function openai(source) {
  const { request, picture, root, hasKey } = source
  const { settings = {}, recipe, length, question, object, reasoning } = request.body
  const { imports, opened } = pythonFile(source)
  const { max_objects, ...sampling } = settings
  const isGrounding = object !== undefined
  const extra = {
    ...(isGrounding
      ? { raylens: { task: request.task, object, ...(max_objects ? { max_objects } : {}) } }
      : {}),
    ...(recipe ? { recipe } : {}),
    ...(reasoning ? { reasoning } : {}),
  }
  const prompt = question ?? object ?? CAPTION_PROMPTS[length ?? 'normal']
  const parameters = [
    `model=${python(source.model)}`,
    'messages=[{"role": "user", "content": content}]',
    ...Object.entries(sampling).map(([name, value]) => `${name}=${python(value)}`),
    ...(Object.keys(extra).length ? [`extra_body=${python(extra)}`] : []),
  ]
  const type = picture.address ? 'image/jpeg' : picture.blob.type
  const text = [
    'import base64',
    ...(hasKey ? ['import os'] : []),
    ...imports,
    '',
    'from openai import OpenAI',
    '',
    ...call('client = OpenAI', [
      `base_url=${python(`${root}v1`)}`,
      `api_key=${keyOf(hasKey)}`,
    ]),
    opened,
    'data = base64.b64encode(file.read()).decode()',
    'content = [',
    `    {"type": "text", "text": ${python(prompt)}},`,
    `    {"type": "image_url", "image_url": {"url": "data:${type};base64," + data}},`,
    ']',
    ...call('reply = client.chat.completions.create', parameters),
    'print(reply.choices[0].message.content)',
  ]
  return { text: text.join('\n'), notes: notesOf(source, length && strings.code.noLength) }
}

/** @param {Source} source @returns {Snippet} */
function javascript(source) {
  const { request, picture, root, hasKey } = source
  const address = addressOf(source)
  const name = JSON.stringify(picture.name)
  const headers = hasKey
    ? ', headers: { Authorization: `Bearer ${process.env.RAYLENS_API_KEY}` }'
    : ''
  const text = [
    ...(address ? [] : ["import { readFile } from 'node:fs/promises'", '']),
    address
      ? `const picture = await (await fetch(${JSON.stringify(address)})).blob()`
      : `const picture = new Blob([await readFile(${name})])`,
    'const form = new FormData()',
    `form.append('file', picture, ${name})`,
    ...fieldsOf(source).map(
      ([field, value]) => `form.append(${JSON.stringify(field)}, ${JSON.stringify(asText(value))})`,
    ),
    `const response = await fetch(${JSON.stringify(root + request.path)}, { method: ` +
    `'POST', body: form${headers} })`,
    'console.log(await response.json())',
  ]
  return { text: text.join('\n'), notes: notesOf(source) }
}
