import assert from 'node:assert/strict'
import { test } from 'node:test'

import { createOpenAI } from '@ai-sdk/openai'
import { generateObject, generateText, Output, streamText, tool } from 'ai'
import { z } from 'zod'

import { BASE_URL, DATA, DESCRIBE, HOW_MANY, WHAT_COLOR } from './scene.mjs'

const openai = createOpenAI({ baseURL: BASE_URL, apiKey: 'none' })
const Count = z.object({ count: z.number().int() })
const apis = { responses: (model) => openai(model), chat: (model) => openai.chat(model) }

function ask(text) {
  return [{ role: 'user', content: [{ type: 'text', text }, { type: 'image', image: DATA }] }]
}

for (const [name, model] of Object.entries(apis)) {
  test(`${name}: two turns`, async () => {
    const messages = ask(HOW_MANY)
    const first = await generateText({ model: model('smolvlm'), messages, maxRetries: 0 })
    assert.equal(first.text, '3')
    messages.push(...first.response.messages, { role: 'user', content: WHAT_COLOR })
    const second = await generateText({ model: model('smolvlm'), messages, maxRetries: 0 })
    assert.equal(second.text, 'blue')
  })

  test(`${name}: a stream`, async () => {
    const result = streamText({ model: model('smolvlm'), messages: ask(HOW_MANY), maxRetries: 0 })
    let text = ''
    for await (const piece of result.textStream) text += piece
    assert.equal(text, '3')
    assert.ok((await result.usage).outputTokens > 0)
  })

  test(`${name}: an object`, async () => {
    const options = { model: model('qwen2.5-vl'), messages: ask(DESCRIBE), maxRetries: 0 }
    const { object } = await generateObject({ ...options, schema: Count })
    assert.deepEqual(object, { count: 3 })
    const { output } = await generateText({ ...options, output: Output.object({ schema: Count }) })
    assert.deepEqual(output, { count: 3 })
  })

  test(`${name}: a tool`, async () => {
    const report = tool({ description: 'Reports the number of shapes.', inputSchema: Count })
    const { toolCalls } = await generateText({
      model: model('qwen2.5-vl'),
      messages: ask(DESCRIBE),
      tools: { report },
      toolChoice: 'required',
      maxRetries: 0,
    })
    assert.deepEqual(toolCalls[0].input, { count: 3 })
  })
}
