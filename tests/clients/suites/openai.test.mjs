import assert from 'node:assert/strict'
import { test } from 'node:test'

import OpenAI from 'openai'
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { z } from 'zod'

import { BASE_URL, DATA_URL, DESCRIBE, HOW_MANY, WHAT_COLOR } from './scene.mjs'

const client = new OpenAI({ baseURL: BASE_URL, apiKey: 'none', maxRetries: 0 })
const Count = z.object({ count: z.number().int() })
const parameters = {
  type: 'object',
  properties: { count: { type: 'integer' } },
  required: ['count'],
  additionalProperties: false,
}

function ask(text) {
  const picture = { type: 'image_url', image_url: { url: DATA_URL } }
  return [{ role: 'user', content: [{ type: 'text', text }, picture] }]
}

function input(text) {
  const picture = { type: 'input_image', image_url: DATA_URL, detail: 'auto' }
  return [{ role: 'user', content: [{ type: 'input_text', text }, picture] }]
}

test('two turns', async () => {
  const messages = ask(HOW_MANY)
  const first = await client.chat.completions.create({ model: 'smolvlm', messages })
  assert.equal(first.choices[0].message.content, '3')
  messages.push(first.choices[0].message, { role: 'user', content: WHAT_COLOR })
  const second = await client.chat.completions.create({ model: 'smolvlm', messages })
  assert.equal(second.choices[0].message.content, 'blue')
})

test('a stream', async () => {
  const stream = client.chat.completions.stream({ model: 'smolvlm', messages: ask(HOW_MANY) })
  assert.equal(await stream.finalContent(), '3')
})

test('parse', async () => {
  const reply = await client.chat.completions.parse({
    model: 'qwen2.5-vl',
    messages: ask(DESCRIBE),
    response_format: zodResponseFormat(Count, 'count'),
  })
  assert.deepEqual(reply.choices[0].message.parsed, { count: 3 })
})

test('a tool that runs', async () => {
  let reported = null
  const runner = client.chat.completions.runTools({
    model: 'qwen2.5-vl',
    messages: ask(DESCRIBE),
    tool_choice: { type: 'function', function: { name: 'report' } },
    tools: [
      {
        type: 'function',
        function: {
          name: 'report',
          description: 'Reports the number of shapes.',
          parameters,
          parse: JSON.parse,
          function: (value) => {
            reported = value
            return 'Thanks.'
          },
        },
      },
    ],
  })
  await runner.finalFunctionToolCallResult()
  assert.deepEqual(reported, { count: 3 })
})

test('responses', async () => {
  const first = await client.responses.create({ model: 'smolvlm', input: input(HOW_MANY) })
  assert.equal(first.output_text, '3')
  const history = [...input(HOW_MANY), ...first.output, { role: 'user', content: WHAT_COLOR }]
  const second = await client.responses.create({ model: 'smolvlm', input: history })
  assert.equal(second.output_text, 'blue')
  const parsed = await client.responses.parse({
    model: 'qwen2.5-vl',
    input: input(DESCRIBE),
    text: { format: zodTextFormat(Count, 'count') },
  })
  assert.deepEqual(parsed.output_parsed, { count: 3 })
})

test('a stream of responses', async () => {
  const stream = client.responses.stream({ model: 'smolvlm', input: input(HOW_MANY) })
  const types = []
  for await (const event of stream) types.push(event.type)
  assert.equal(types[0], 'response.created')
  assert.equal(types.at(-1), 'response.completed')
  assert.equal((await stream.finalResponse()).output_text, '3')
})
