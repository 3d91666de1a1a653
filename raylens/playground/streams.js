// Server-sent events, parsed as they arrive.

/**
 * Yield the lines of a stream, without their ends: \n, \r\n or \r.
 * @param {ReadableStream<Uint8Array>} stream
 */
async function* readLines(stream) {
  const reader = stream.getReader()
  const decoder = new TextDecoder()
  let rest = ''
  try {
    for (;;) {
      const { value, done } = await reader.read()
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true })
      // A \r at the end may be half of a \r\n.
      const complete = done || !rest.endsWith('\r') ? rest : rest.slice(0, -1)
      const held = rest.slice(complete.length)
      const lines = complete.split(/\r\n|\n|\r/)
      rest = lines.pop() + held
      yield* lines
      if (done) break
    }
    if (rest) yield rest
  } finally {
    await reader.cancel().catch(() => {})
  }
}

/**
 * Yield server-sent events (WHATWG HTML, section 9.2). An event that is cut off is dropped.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<{event: string, data: string, id: string}>}
 */
export async function* readEvents(stream) {
  let event = ''
  let id = ''
  let data = []
  for await (const line of readLines(stream)) {
    if (line === '') {
      if (data.length) yield { event: event || 'message', data: data.join('\n'), id }
      event = ''
      data = []
      continue
    }
    const colon = line.indexOf(':')
    if (colon === 0) continue // a comment
    const name = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
    if (name === 'data') data.push(value)
    else if (name === 'event') event = value
    else if (name === 'id') id = value
  }
}

/**
 * Return a stream, and call `onSilence` if nothing comes for too long: the connection may be dead
 * although no end was heard of.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {number} ms
 * @param {() => void} onSilence
 */
export function endIfSilent(stream, ms, onSilence) {
  let timer = setTimeout(onSilence, ms)
  const watch = new TransformStream({
    transform(chunk, controller) {
      clearTimeout(timer)
      timer = setTimeout(onSilence, ms)
      controller.enqueue(chunk)
    },
  })
  return stream.pipeThrough(watch)
}
