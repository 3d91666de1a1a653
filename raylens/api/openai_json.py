"""Pieces of JSON that several of OpenAI's APIs share."""

from __future__ import annotations

import uuid
from typing import Any

from raylens.core.types import TokenLogprob

MIN_LOGPROB = -9999.0
"""Lowest log probability that OpenAI reports; JSON has no infinity."""


def new_id(prefix: str) -> str:
    """Return an id such as ``msg_…``."""
    return f"{prefix}_{uuid.uuid4().hex}"


def new_call_id() -> str:
    """Return an id for a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def logprob_as_json(token: TokenLogprob) -> dict[str, Any]:
    alternatives = [_token_as_json(alternative) for alternative in token.top]
    return {**_token_as_json(token), "top_logprobs": alternatives}


def clip_logprob(logprob: float) -> float:
    """Return a log probability that JSON can hold. NaN becomes the lowest value too."""
    return max(MIN_LOGPROB, logprob)  # `max` keeps its first argument


def _token_as_json(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": clip_logprob(token.logprob),
        "bytes": list(token.data),
    }
