import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'

import WebSocket from 'ws'

import { DATA, HOW_MANY, SERVER } from './scene.mjs'

const SOCKET = `${SERVER.replace('http', 'ws')}/api/v1/ws`
const CAPTION =
  'a red circle at the top left, a blue square at the center and a yellow triangle at the bottom right'

// As VLM Node's client does: messages in another form are ignored, and responses are added up until
// one is done.
class Client {
  answers = []
  #text = ''
  #waiting = []

  constructor() {
    this.socket = new WebSocket(SOCKET)
    this.socket.onmessage = ({ data }) => this.#take(JSON.parse(data))
  }

  #take(message) {
    if (typeof message.response !== 'string' || typeof message.done !== 'boolean') return
    this.#text += message.response
    if (!message.done) return
    this.answers.push({ ...message, text: this.#text })
    this.#text = ''
    this.#waiting.shift()?.()
  }

  async next() {
    if (!this.answers.length) await new Promise((resolve) => this.#waiting.push(resolve))
    return this.answers.shift()
  }

  async close() {
    this.socket.close()
    await once(this.socket, 'close')
  }
}

async function connect() {
  const client = new Client()
  await once(client.socket, 'open')
  return client
}

test('pictures get the answers to the prompt before them', async () => {
  const client = await connect()
  client.socket.send(DATA)
  assert.equal((await client.next()).text, CAPTION)
  client.socket.send(HOW_MANY)
  client.socket.send(DATA)
  const answer = await client.next()
  assert.equal(answer.text, '3')
  assert.equal(answer.model, 'moondream')
  assert.ok(answer.total_duration > 0 && answer.eval_count > 0)
  await client.close()
})

test('of many pictures at once, each ends, and the last one is answered', async () => {
  const client = await connect()
  client.socket.send(HOW_MANY)
  for (let number = 0; number < 30; number++) client.socket.send(DATA)
  const endings = []
  while (endings.length < 30) endings.push(await client.next())
  const answered = endings.filter((ending) => !ending.replaced)
  assert.deepEqual(new Set(answered.map((ending) => ending.text)), new Set(['3']))
  assert.equal(answered.at(-1).frame, 30)
  const numbers = endings.map((ending) => ending.frame).sort((a, b) => a - b)
  assert.deepEqual(numbers, Array.from({ length: 30 }, (_, index) => index + 1))
  await client.close()
})

test('settings ask for boxes, and mistakes are told', async () => {
  const client = await connect()
  client.socket.send(JSON.stringify({ type: 'settings', task: 'detect', prompt: 'blue square' }))
  client.socket.send(DATA)
  const { objects } = await client.next()
  assert.equal(objects.length, 1)
  assert.ok(objects[0].x_min < objects[0].x_max)
  client.socket.send(JSON.stringify({ type: 'settings', task: 'fly' }))
  assert.match((await client.next()).error, /task/)
  client.socket.send(Buffer.from('no picture'))
  assert.equal((await client.next()).status, 415)
  client.socket.send(DATA)
  assert.equal((await client.next()).objects.length, 1)
  await client.close()
})

test('pings are answered', async () => {
  const client = await connect()
  client.socket.ping('hello')
  const [data] = await once(client.socket, 'pong')
  assert.equal(data.toString(), 'hello')
  const messages = once(client.socket, 'message')
  client.socket.send('{"type": "ping"}')
  assert.equal(JSON.parse((await messages)[0]).type, 'pong')
  await client.close()
})
