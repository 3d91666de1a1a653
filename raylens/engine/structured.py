"""Answers that follow a JSON schema: tokens that would leave it are forbidden, through llguidance.

Source: https://github.com/guidance-ai/llguidance (an Earley parser over derivatives of regular
expressions).
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raylens.core.errors import InvalidRequest

FIELD = "response_format"
MAX_SCHEMA = 65_536
"""Characters of a schema. Matchers grow with it: 64 KiB of properties make about 25 MB."""

KEPT = 16
"""Schemas that were tried, and are remembered."""

# One space, or one line break and an indent. llguidance's own default is any length of white space,
# in which a small model that has lost its thread goes on until max_tokens; none at all would force
# it off what it has learned.
_OPTIONS: Any = {"whitespace_pattern": r" |\n[ \t]{0,32}"}

# Work is bounded by llguidance's own counts (its defaults, or less). Errors leave the parser's
# state out.
_LIMITS: dict[str, Any] = {
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

# These counts don't reach all of its compiler: a large `multipleOf`, or patterns joined by `allOf`,
# take it minutes and gigabytes, and a thread in it can't be ended. So a schema that is new is tried
# in a process that can.
_TRIAL = """
import contextlib, json, resource, sys
sys.path[:] = json.loads(sys.argv[1])
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
for limit, most in (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, 2), (resource.RLIMIT_AS, 2**30):
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(limit, (most, most))
grammar, limits = json.load(sys.stdin)
try:
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(**limits))
    matcher.is_error() or matcher.compute_bitmask()
    json.dump(matcher.get_error(), sys.stdout)
except BaseException as error:
    json.dump(repr(error), sys.stdout)
"""
_TRIAL_SECONDS = 30.0
"""Of the clock, where the machine is busy; the trial has 2 of the processor."""


class Grammar:
    """What one answer may still say. One thread at a time."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""
        return self._matcher.is_stopped()

    def allow(self, logits: Tensor) -> Tensor:
        """A copy of float32 logits (vocabulary,), which lie on the host, with -inf where the token
        is forbidden. Raises ``InvalidRequest`` where the schema has become too much to follow."""
        allowed = np.unpackbits(self.allowed(), count=self._vocabulary, bitorder="little").view(
            np.bool_
        )
        return torch.from_numpy(np.where(allowed, logits.numpy(), np.float32(-np.inf)))

    def allowed(self) -> NDArray[np.uint8]:
        """The tokens that may come next, a bit each, the lowest bit of a byte first. Raises as
        ``allow`` does."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise _invalid(f"the schema can't be followed: {_line(self._matcher.get_error())}")
        return bits[: -(-self._vocabulary // 8)]

    def accept(self, token_id: int) -> None:
        """Goes on past this token. Raises ``ValueError`` where it is forbidden; the grammar is then
        of no more use."""
        if not self._matcher.consume_token(token_id):
            raise ValueError(
                f"the schema forbids token {token_id}: {_line(self._matcher.get_error())}"
            )

    def copy(self) -> Grammar:
        """The same state, going its own way from here on."""
        return Grammar(self._matcher.deep_copy(), self._vocabulary)


class Grammars:
    """The schemas of one model's requests. Any thread may call it.

    ``vocabulary`` is the width of the logits, which may exceed the tokenizer's; all of ``eos_ids``
    may end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int], vocabulary: int) -> None:
        self._tokenizer = _native(tokenizer, eos_ids, vocabulary)
        self._vocabulary = vocabulary
        self._tried = lru_cache(KEPT)(_tried)

    def compile(self, json_schema: str) -> Grammar:
        """The beginning of an answer that follows this schema; the first time takes a process, and
        about 0.1 s.

        Raises ``InvalidRequest`` about "response_format" where it is no schema, asks for what
        llguidance doesn't do, is satisfied by nothing, or takes more than 2 s or 1 GiB to compile.
        """
        grammar = self._tried(json_schema)
        if isinstance(grammar, InvalidRequest):
            raise grammar
        # Made anew each time: copies of a matcher share the states of its lexer, which are counted
        # against its limit.
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        if matcher.is_error():
            raise _invalid(_line(matcher.get_error()))
        return Grammar(matcher, self._vocabulary)


def _tried(json_schema: str) -> str | InvalidRequest:
    """llguidance's form of a schema that it can follow. Refusals are kept as well: they take as
    long."""
    try:
        grammar = _grammar(_parse(json_schema))
    except InvalidRequest as error:
        return error
    wrong = _try(grammar)
    return _invalid(_line(wrong)) if wrong else grammar


def _grammar(schema: dict[str, Any]) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    except ValueError as error:  # half a surrogate pair
        raise _invalid(_line(str(error))) from None


def _parse(json_schema: str) -> dict[str, Any]:
    """Never hands raw text on: llguidance pastes it into a grammar, which it could then rewrite."""
    if len(json_schema) > MAX_SCHEMA:
        raise InvalidRequest(
            f"{FIELD}: the schema has {len(json_schema)} characters, at most {MAX_SCHEMA} are read",
            FIELD,
            MAX_SCHEMA,
            len(json_schema),
        )
    try:
        schema = json.loads(json_schema)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the schema is not JSON: {_line(str(error))}") from None
    if not isinstance(schema, dict):
        raise _invalid("the schema must be an object")
    if "x-guidance" in schema:  # it would set llguidance's options
        raise _invalid("x-guidance is not supported")
    return schema


def _try(grammar: str) -> str:
    """What is wrong with it, compiled over an alphabet of bytes; empty where nothing is."""
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL, json.dumps([path for path in sys.path if path])],
            input=json.dumps((grammar, _LIMITS)),
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "the schema is too complex"
    if trial.returncode < 0:  # ended by a signal: out of its time, or out of its memory
        return "the schema is too complex"
    trial.check_returncode()
    return str(json.loads(trial.stdout))


def _native(tokenizer: Tokenizer, eos_ids: frozenset[int], vocabulary: int) -> LLTokenizer:
    """The tokenizer as llguidance reads it. Ends that it has no token for get one, as llguidance
    insists on."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    size = max(copy.get_vocab_size(), max(eos_ids) + 1)
    copy.add_special_tokens(
        [f"<|unnamed {number}|>" for number in range(copy.get_vocab_size(), size)]
    )
    return LLTokenizer(copy.to_str(), n_vocab=max(vocabulary, size), eos_token=sorted(eos_ids))


def _line(error: str) -> str:
    """One line of llguidance's words; where it only says that it is stuck, what that means."""
    if error.startswith("NoExtension"):
        return "nothing follows the schema"
    words = " ".join(error.split())
    return words if len(words) <= 200 else words[:199] + "…"


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}: {message}", FIELD)
