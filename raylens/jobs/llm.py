"""The language model that reads what a job has found, and words it: one of the graph's own, or a
server's."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from typing import Protocol

import httpx

from raylens.core.config import LlmConfig
from raylens.core.errors import DeadlineExceeded, ModelFailed, Overloaded, RaylensError
from raylens.core.logs import request_id
from raylens.core.types import Chat, Message, Role, TextPart
from raylens.jobs.inference import InferenceClient, Options, greedy
from raylens.jobs.job import new_id

CONNECT_S = 10.0
"""A server that doesn't take a connection for so long is given up; the deadline bounds all the
rest."""
LONGEST_PATIENCE_S = 3600.0
"""Of a server's Retry-After."""


class Llm(Protocol):
    async def complete(self, prompt: str, deadline: float) -> str:
        """What the model says to ``prompt``, its most likely words. Raises any of
        :mod:`raylens.core.errors`."""
        ...


class GraphLlm:
    """A model of the graph, asked in a chat."""

    def __init__(self, inference: InferenceClient, model: str) -> None:
        self._inference = inference
        self._options = Options(model=model)

    async def complete(self, prompt: str, deadline: float) -> str:
        job = request_id.get()
        options = greedy(self._inference.resolve(self._options))
        chat = Chat((Message(Role.USER, (TextPart(prompt),)),))
        return (
            await self._inference.ask(new_id() if job == "-" else job, deadline, options, chat, ())
        ).text


class ServerLlm:
    """A server that speaks OpenAI's API, asked at ``{base_url}/chat/completions``.

    No redirect is followed and no proxy asked: what is sent goes to the server that the
    configuration names, or nowhere.
    """

    def __init__(
        self,
        config: LlmConfig,
        transport: httpx.AsyncBaseTransport | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._model = config.model
        self._url = f"{(config.base_url or '').rstrip('/')}/chat/completions"
        key = environment.get(config.api_key_env, "").strip() if config.api_key_env else ""
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._transport = transport
        # Reading the certificates takes long enough to be done once.
        self._ssl = httpx.create_ssl_context()

    async def complete(self, prompt: str, deadline: float) -> str:
        """Raises ``Overloaded``, ``DeadlineExceeded`` and ``ModelFailed``."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        try:
            async with asyncio.timeout(max(0.0, deadline - time.time())):
                response = await self._post(body)
        except httpx.ConnectTimeout:
            raise _unreachable() from None
        except (TimeoutError, httpx.TimeoutException):
            raise DeadlineExceeded(
                "the language model's server didn't answer before the deadline", "deadline"
            ) from None
        except (
            httpx.InvalidURL,
            httpx.UnsupportedProtocol,
            httpx.LocalProtocolError,
            UnicodeError,
        ) as error:
            # The message may hold a header, and so the key.
            raise ModelFailed(
                f"jobs.llm: no request can be made of base_url and the key ({type(error).__name__})",
                "jobs.llm",
            ) from None
        except httpx.HTTPError:
            raise _unreachable() from None
        return _text_of(response)

    async def _post(self, body: object) -> httpx.Response:
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        async with httpx.AsyncClient(
            transport=self._transport,
            verify=self._ssl,
            timeout=timeout,
            trust_env=False,
            follow_redirects=False,
        ) as http:
            return await http.post(self._url, json=body, headers=self._headers)


def make_llm(config: LlmConfig | None, inference: InferenceClient) -> Llm | None:
    """None where none is configured."""
    if config is None:
        return None
    return GraphLlm(inference, config.model) if config.base_url is None else ServerLlm(config)


def _text_of(response: httpx.Response) -> str:
    """The answer's text. Raises what else the server says as an error of ours."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise Overloaded(
            f"the language model's server answered with status {status}",
            "jobs.llm",
            retry_after=_patience(response.headers.get("Retry-After", "")),
        )
    if status != 200:
        raise ModelFailed(f"the language model's server answered with status {status}", "jobs.llm")
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
    raise ModelFailed(
        "the language model's server answered with something else than a chat's completion",
        "jobs.llm",
    )


def _patience(retry_after: str) -> float:
    """The header's seconds; its other form, a date, is as good as none."""
    return (
        min(float(retry_after), LONGEST_PATIENCE_S)
        if re.fullmatch(r"[0-9]{1,9}", retry_after.strip())
        else 1.0
    )


def _unreachable() -> RaylensError:
    return Overloaded("the language model's server can't be reached", "jobs.llm", retry_after=1.0)
