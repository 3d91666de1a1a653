"""Streams are parsed as they arrive, however the network cuts them."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.browser

PARSE = """async (chunks) => {
  const { readEvents } = await import('/playground/streams.js')
  const stream = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(new Uint8Array(chunk))
      controller.close()
    },
  })
  const values = []
  for await (const value of readEvents(stream)) values.push(value)
  return values
}"""
EVENTS = (
    ': a comment\r\ndata: {"chunk":"größe 图 "}\n\n'
    "event: state\rid: 7\rdata:first\rdata: second\r\r"
    "data\n\nretry: 5\n\ndata: cut off"
)
EXPECTED = [
    {"event": "message", "data": '{"chunk":"größe 图 "}', "id": ""},
    {"event": "state", "data": "first\nsecond", "id": "7"},
    {"event": "message", "data": "", "id": "7"},
]


def parse(page: Page, text: str, size: int) -> Any:
    data = text.encode()
    chunks = [list(data[start : start + size]) for start in range(0, len(data), size)]
    return page.evaluate(PARSE, chunks)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_in_pieces_of_any_size(page: Page, size: int) -> None:
    assert parse(page, EVENTS, size) == EXPECTED
    windows = EVENTS.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    assert parse(page, windows, size) == EXPECTED


def test_an_event_is_there_before_the_stream_goes_on(page: Page) -> None:
    script = """async () => {
      const { readEvents } = await import('/playground/streams.js')
      let controller
      const stream = new ReadableStream({ start: (given) => { controller = given } })
      const events = readEvents(stream)
      controller.enqueue(new TextEncoder().encode('data: one\\n\\n'))
      const first = await events.next()
      controller.close()
      return [first.value.data, (await events.next()).done]
    }"""
    assert page.evaluate(script) == ["one", True]
