import assert from 'node:assert/strict'
import { test } from 'node:test'

import { vl } from 'moondream'

import { BASE_URL, DATA, HOW_MANY } from './scene.mjs'

const model = new vl({ endpoint: BASE_URL })
const CAPTION = 'a red circle, a blue square and a yellow triangle'

async function join(pieces) {
  let text = ''
  for await (const piece of pieces) text += piece
  return text
}

test('captions and queries', async () => {
  const { caption } = await model.caption({ image: DATA, length: 'short' })
  assert.equal(caption, CAPTION)
  const { answer } = await model.query({ image: DATA, question: HOW_MANY })
  assert.equal(answer, '3')
  const stream = await model.caption({ image: DATA, length: 'short', stream: true })
  assert.equal(await join(stream.caption), CAPTION)
})

test('boxes and points', async () => {
  const { objects } = await model.detect({ image: DATA, object: 'blue square' })
  const { points } = await model.point({ image: DATA, object: 'blue square' })
  assert.equal(objects.length, 1)
  assert.ok(objects[0].x_min < points[0].x && points[0].x < objects[0].x_max)
})
