"""The page's server without Ray: the HTTP application over a model that answers as tests say."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from raylens.api.app import create_app
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import ModelNotLoaded, RaylensError
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Delta,
    Detect,
    Findings,
    FinishReason,
    Grounding,
    Location,
    MediaFile,
    ModelInfo,
    PictureFile,
    Point,
    ProcessedPicture,
    Query,
    Reasoning,
    Region,
    StepReport,
    Usage,
    VisionRequest,
)
from testing.ports import free_port
from tests.browser.live_sessions import LocalSessions
from tests.browser.scripted_status import ScriptedStatus

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "docs" / "scene.png"
CAPTION = "a red circle, a blue square and a yellow triangle"
KEY = "secret-key"
MAX_BYTES = 400_000
MAX_SIDE = 2000
PROMPT_TOKENS = 74
CONFIG: dict[str, Any] = {
    "models": [
        {"name": "moondream", "family": "moondream", "checkpoint": "models/pocket/moondream"},
        {"name": "smolvlm", "family": "smolvlm", "checkpoint": "org/SmolVLM"},
    ],
    "limits": {"max_image_bytes": MAX_BYTES, "max_image_side": MAX_SIDE, "max_tokens": 1000},
    "recipes": {"mine": {"name": "enhanced"}},
}
TASKS = {
    "moondream": ("caption", "query", "detect", "point", "chat", "reason"),
    "smolvlm": ("caption", "query", "chat"),
}


def find_red() -> Region:
    """Return the bounds of the scene's red circle."""
    pixels = np.asarray(Image.open(SCENE).convert("RGB")).astype(int)
    rows, columns = np.nonzero(
        (pixels[..., 0] > 150) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    )
    height, width = pixels.shape[:2]
    return Region(
        columns.min() / width, rows.min() / height, (columns.max() + 1) / width,
        (rows.max() + 1) / height,
    )  # fmt: skip


def reasoning() -> Reasoning:
    """Return thoughts of which the word "circle" is about the red circle."""
    text = "🔎 The circle is red."
    start = text.index("circle")
    return Reasoning(text, (Grounding(start, start + len("circle"), (center(find_red()),)),))


def center(region: Region) -> Location:
    return Location((region.x_min + region.x_max) / 2, (region.y_min + region.y_max) / 2)


@dataclass
class ScriptedService(VisionService):
    """Answers with ``words``, one each ``pause_s``, or with the scene's red circle."""

    words: tuple[str, ...] = tuple(f"{word} " for word in CAPTION.split(" "))
    pause_s: float = 0.0
    error: RaylensError | None = None
    words_before_error: int = 0
    warnings: tuple[str, ...] = ()
    finds_nothing: bool = False
    loaded: frozenset[str] = frozenset(TASKS)
    requests: list[VisionRequest] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once an answer has ended or was stopped."""
    gate: threading.Event = field(default_factory=threading.Event)
    """The answer waits for it after its first word. Set at first."""

    def __post_init__(self) -> None:
        self.gate.set()

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        self.pictures.extend(picture.data for picture in pictures)
        if self.error is not None and not self.words_before_error:
            raise self.error
        try:
            if isinstance(request.task, Detect | Point):
                await self._wait()
                yield self._found(request)
                return
            for number, word in enumerate(self.words):
                if number == 1:
                    await self._wait()
                if self.error is not None and number == self.words_before_error:
                    raise self.error
                await asyncio.sleep(self.pause_s)
                yield Delta(word, warnings=self.warnings if number == 0 else ())
            thinks = isinstance(request.task, Query) and request.task.reasoning
            findings = Findings(reasoning=reasoning()) if thinks else None
            usage = Usage(PROMPT_TOKENS, len(self.words))
            yield Delta("", 0, FinishReason.STOP, usage, findings=findings)
        finally:
            self.ended.set()

    async def _wait(self) -> None:
        while not self.gate.is_set():
            await asyncio.sleep(0.01)

    def _found(self, request: VisionRequest) -> Delta:
        red = find_red()
        if isinstance(request.task, Detect):
            regions = (red, Region(0.0, 0.0, 1.0, 1.0))
            findings = Findings(regions=() if self.finds_nothing else regions)
        else:
            findings = Findings(locations=() if self.finds_nothing else (center(red),))
        usage = Usage(PROMPT_TOKENS, 4)
        return Delta("", 0, FinishReason.STOP, usage, findings=findings, warnings=self.warnings)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        if self.error is not None:
            raise self.error
        self.recipes.append(recipe)
        opened = Image.open(io.BytesIO(picture.data)).convert("RGB")
        output = io.BytesIO()
        opened.save(output, "JPEG")
        steps = (StepReport("decode", "PNG", 0.0021), StepReport("denoise", "skipped", 0.0004))
        size = opened.size
        return ProcessedPicture(
            output.getvalue(), size, size, size, (1, 0, 0, 0, 1, 0), steps, self.warnings
        )

    async def input_size(self, model: str, size: tuple[int, int]) -> tuple[int, int]:
        return (378, 378)

    async def model_info(self, name: str) -> ModelInfo:
        if name not in self.loaded:
            raise ModelNotLoaded(f"{name} is down", "model", retry_after=2)
        models = {model["name"]: model for model in CONFIG["models"]}
        model = models[name]
        limit = 1 if name == "moondream" else None
        return ModelInfo(
            name, model["checkpoint"], model["family"], "cpu", TASKS[name],
            max_pictures=limit, frames_as_pictures=limit,
        )  # fmt: skip

    def reset(self) -> None:
        self.gate.set()
        self.__init__()  # type: ignore[misc]


@dataclass(frozen=True)
class Site:
    """A running server. ``url`` ends with a slash."""

    url: str
    service: ScriptedService
    status: ScriptedStatus
    server: uvicorn.Server

    @property
    def port(self) -> int:
        return self.server.config.port


@dataclass(frozen=True)
class LiveSite(Site):
    """With live video."""

    shared: Shared
    sessions: LocalSessions
    """Those over WebRTC."""
    drains: threading.Event
    """Set, it has the server drain."""


def below(app: ASGIApp, root_path: str) -> ASGIApp:
    """Serve an application below a prefix, as Serve's proxy does."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope = {**scope, "root_path": root_path}
        await app(scope, receive, send)

    return call


@contextmanager
def serving(
    root_path: str = "", *, port: int | None = None, has_webrtc: bool = True, **config: object
) -> Iterator[LiveSite]:
    """Run a server in a thread, by default on a free port."""
    service, status = ScriptedService(), ScriptedStatus()
    settings = AppConfig.model_validate({**CONFIG, **config})
    drains = threading.Event()
    shared = Shared(settings, draining=Draining(drains.is_set))
    sessions = LocalSessions(shared)
    app: ASGIApp = create_app(
        service, settings, webrtc=sessions if has_webrtc else None, status=status, shared=shared
    )
    with running(below(app, root_path), port or free_port()) as server:
        url = f"http://127.0.0.1:{server.config.port}{root_path}/"
        try:
            yield LiveSite(url, service, status, server, shared, sessions, drains)
        finally:
            service.gate.set()


@contextmanager
def running(app: ASGIApp, port: int, has_lifespan: bool = False) -> Iterator[uvicorn.Server]:
    """Serve an application in a thread."""
    settings = uvicorn.Config(
        app, port=port, log_level="critical", lifespan="on" if has_lifespan else "off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            thread.join(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
