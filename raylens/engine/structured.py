"""Structured output: answers that follow a JSON schema.

llguidance computes which tokens would violate the schema. Their logits are masked.

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
MAX_SCHEMA_CHARS = 65_536
"""Matchers grow with their schema: 64 KiB of properties take about 25 MB."""

CACHED_SCHEMAS = 16

# Whitespace is one space, or one line break and an indent. llguidance allows any amount by default,
# and a small model that has lost its thread fills the answer with whitespace until max_tokens. To
# allow none would force the model away from the format that it has learned.
_GRAMMAR_OPTIONS: Any = {"whitespace_pattern": r" |\n[ \t]{0,32}"}

# These bounds of llguidance's work are its defaults, or lower. Errors are not verbose, to leave the
# parser's state out of them.
_PARSER_LIMITS: dict[str, Any] = {
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

# These bounds do not cover the whole compiler. A large `multipleOf`, or patterns joined by `allOf`,
# take minutes and gigabytes, and a thread that compiles cannot be stopped. A process can, so each
# new schema is first compiled in a process of its own.
_TRIAL = """
import contextlib, json, resource, sys
sys.path[:] = json.loads(sys.argv[1])
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
bounds = (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, 2), (resource.RLIMIT_AS, 2**30)
for resource_id, bound in bounds:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource_id, (bound, bound))
grammar, limits = json.load(sys.stdin)
try:
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(**limits))
    matcher.is_error() or matcher.compute_bitmask()
    json.dump(matcher.get_error(), sys.stdout)
except BaseException as error:
    json.dump(repr(error), sys.stdout)
"""
_TRIAL_SECONDS = 30.0
"""Wall-clock limit of a trial, for a busy machine. Its limit of CPU time is 2 s."""


class Grammar:
    """The state of one answer that follows a schema. Not thread-safe."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether only the end of the answer can follow."""
        return self._matcher.is_stopped()

    def mask_logits(self, logits: Tensor) -> Tensor:
        """Return a copy of the logits with -inf for forbidden tokens.

        ``logits`` are float32 (vocabulary,), on the host. Raises ``InvalidRequest`` if the schema
        has become too complex to follow.
        """
        is_allowed = np.unpackbits(self.bitmask(), count=self._vocabulary, bitorder="little")
        masked = np.where(is_allowed.view(np.bool_), logits.numpy(), np.float32(-np.inf))
        return torch.from_numpy(masked)

    def bitmask(self) -> NDArray[np.uint8]:
        """Return which tokens can come next, one bit each, lowest bit of a byte first.

        Raises ``InvalidRequest`` like ``mask_logits``.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise _invalid(f"the schema cannot be followed: {_reason(self._matcher.get_error())}")
        return bits[: -(-self._vocabulary // 8)]

    def accept(self, token_id: int) -> None:
        """Advance past a token.

        Raises ``ValueError`` if the token is forbidden. The grammar is then unusable.
        """
        if not self._matcher.consume_token(token_id):
            raise ValueError(
                f"the schema forbids token {token_id}: {_reason(self._matcher.get_error())}"
            )

    def copy(self) -> Grammar:
        """Return an independent copy of the current state."""
        return Grammar(self._matcher.deep_copy(), self._vocabulary)


class GrammarCompiler:
    """Compiles schemas for one model. Thread-safe.

    ``vocabulary`` is the width of the logits, which can exceed the tokenizer's vocabulary. Each of
    ``eos_ids`` can end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int], vocabulary: int) -> None:
        self._tokenizer = _make_ll_tokenizer(tokenizer, eos_ids, vocabulary)
        self._vocabulary = vocabulary
        self._validate = lru_cache(CACHED_SCHEMAS)(_validate)

    def compile(self, json_schema: str) -> Grammar:
        """Return the grammar of a new answer. A new schema takes about 0.1 s, and a process.

        Raises ``InvalidRequest`` about "response_format" if the text is not a schema, uses what
        llguidance does not support, cannot be satisfied, or takes more than 2 s or 1 GiB to
        compile.
        """
        grammar = self._validate(json_schema)
        if isinstance(grammar, InvalidRequest):
            raise grammar
        # Not copied from a cached matcher: copies share the states of their lexer, and all count
        # toward one limit.
        matcher = LLMatcher(
            self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_PARSER_LIMITS)
        )
        if matcher.is_error():
            raise _invalid(_reason(matcher.get_error()))
        return Grammar(matcher, self._vocabulary)


def _validate(json_schema: str) -> str | InvalidRequest:
    """Return llguidance's form of a schema, or the error.

    Errors are returned, not raised, so that they are cached too. They take as long to find.
    """
    try:
        grammar = _to_grammar(_parse(json_schema))
    except InvalidRequest as error:
        return error
    error_message = _compile_in_process(grammar)
    return _invalid(_reason(error_message)) if error_message else grammar


def _to_grammar(schema: dict[str, Any]) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=_GRAMMAR_OPTIONS)
    except ValueError as error:  # half of a surrogate pair
        raise _invalid(_reason(str(error))) from None


def _parse(json_schema: str) -> dict[str, Any]:
    """Return the schema as an object.

    llguidance must not get the raw text. It pastes it into a grammar, which the text could rewrite.
    """
    if len(json_schema) > MAX_SCHEMA_CHARS:
        raise InvalidRequest(
            f"{FIELD}: the schema has {len(json_schema)} characters; the limit is"
            f" {MAX_SCHEMA_CHARS}",
            FIELD,
            MAX_SCHEMA_CHARS,
            len(json_schema),
        )
    try:
        schema = json.loads(json_schema)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the schema is not valid JSON: {_reason(str(error))}") from None
    if not isinstance(schema, dict):
        raise _invalid("expected a JSON object")
    if "x-guidance" in schema:  # would set llguidance's options
        raise _invalid("x-guidance is not supported")
    return schema


def _compile_in_process(grammar: str) -> str:
    """Compile a grammar over bytes, in a process. Return its error, or an empty string."""
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL, json.dumps([path for path in sys.path if path])],
            input=json.dumps((grammar, _PARSER_LIMITS)),
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "the schema is too complex"
    if trial.returncode < 0:  # ended by a signal, at its limit of CPU time or memory
        return "the schema is too complex"
    trial.check_returncode()
    return str(json.loads(trial.stdout))


def _make_ll_tokenizer(
    tokenizer: Tokenizer, eos_ids: frozenset[int], vocabulary: int
) -> LLTokenizer:
    """Return llguidance's form of a tokenizer.

    llguidance requires a token for each EOS id. Ids without one get a special token.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    size = max(copy.get_vocab_size(), max(eos_ids) + 1)
    copy.add_special_tokens(
        [f"<|unnamed {number}|>" for number in range(copy.get_vocab_size(), size)]
    )
    return LLTokenizer(copy.to_str(), n_vocab=max(vocabulary, size), eos_token=sorted(eos_ids))


def _reason(error: str) -> str:
    """Return one short line for one of llguidance's errors."""
    if error.startswith("NoExtension"):  # its parser is stuck
        return "nothing satisfies the schema"
    line = " ".join(error.split())
    return line if len(line) <= 200 else line[:199] + "…"


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}: {message}", FIELD)
