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

REQUEST_FIELD = "response_format"
MAX_SCHEMA_CHARS = 65_536
"""A matcher's memory grows with its schema: 64 KiB of properties take about 25 MB."""

CACHED_SCHEMAS = 16

# Whitespace is one space, or one line break and an indent. llguidance allows any amount by default,
# and a small model that goes off track fills the answer with whitespace until max_tokens.
# Allowing none would force the model away from the format that it has learned.
_GRAMMAR_OPTIONS: Any = {"whitespace_pattern": r" |\n[ \t]{0,32}"}

# Limits on llguidance's work, at or below its defaults. Errors are not verbose: the parser's state
# must not appear in them.
_PARSER_LIMITS: dict[str, Any] = {
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

# These limits do not cover the whole compiler. A large `multipleOf`, or patterns joined by `allOf`,
# take minutes and gigabytes, and a compiling thread can't be interrupted, but a process can be
# killed. Each new schema is therefore first compiled in a subprocess.
_TRIAL_COMPILE_SCRIPT = """
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
_TRIAL_TIMEOUT_S = 30.0
"""Wall-clock timeout; generous because the machine may be busy. CPU time is limited to 2 s."""

_TOO_COMPLEX = "the schema is too complex to enforce"


class GrammarState:
    """Position of one answer in its grammar. Not thread-safe."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete: only EOS may follow."""
        return self._matcher.is_stopped()

    def mask_logits(self, logits: Tensor) -> Tensor:
        """Return a copy of the logits with -inf for forbidden tokens.

        ``logits`` are float32 (vocabulary,), on the host. Raises ``InvalidRequest`` if the schema
        turns out to be too complex to enforce.
        """
        is_allowed = np.unpackbits(self.bitmask(), count=self._vocab_size, bitorder="little")
        masked = np.where(is_allowed.view(np.bool_), logits.numpy(), np.float32(-np.inf))
        return torch.from_numpy(masked)

    def bitmask(self) -> NDArray[np.uint8]:
        """Return which tokens can come next, one bit per token, lowest bit of a byte first.

        Raises ``InvalidRequest`` like ``mask_logits``.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise _invalid(f"the schema cannot be enforced: {_reason(self._matcher.get_error())}")
        return bits[: -(-self._vocab_size // 8)]

    def accept(self, token_id: int) -> None:
        """Advance past a token.

        Raises ``ValueError`` if the token is forbidden. The state is then unusable.
        """
        if not self._matcher.consume_token(token_id):
            raise ValueError(
                f"the schema forbids token {token_id}: {_reason(self._matcher.get_error())}"
            )

    def copy(self) -> GrammarState:
        """Return an independent copy."""
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)


class GrammarCompiler:
    """Compiles schemas for one model. Thread-safe.

    ``vocab_size`` is the width of the logits, which can exceed the tokenizer's vocabulary. Each of
    ``eos_ids`` can end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = _make_ll_tokenizer(tokenizer, eos_ids, vocab_size)
        self._vocab_size = vocab_size
        self._cached_grammar = lru_cache(CACHED_SCHEMAS)(_to_validated_grammar)

    def compile(self, json_schema: str) -> GrammarState:
        """Return the state of a new answer in the schema's grammar.

        A schema not seen before takes about 0.1 s and a subprocess.

        Raises ``InvalidRequest`` about "response_format" if the text is not a schema, uses what
        llguidance does not support, cannot be satisfied, or takes more than 2 s or 1 GiB to
        compile.
        """
        grammar = self._cached_grammar(json_schema)
        if isinstance(grammar, InvalidRequest):
            raise grammar
        # Not copied from a cached matcher: copies share lexer states, which count together toward
        # the limit.
        matcher = LLMatcher(
            self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_PARSER_LIMITS)
        )
        if matcher.is_error():
            raise _invalid(_reason(matcher.get_error()))
        return GrammarState(matcher, self._vocab_size)


def _to_validated_grammar(json_schema: str) -> str | InvalidRequest:
    """Return the schema's grammar in llguidance's format, or the error.

    Errors are returned, not raised, so that they are cached too. They take as long to find.
    """
    try:
        grammar = _to_grammar(_parse(json_schema))
    except InvalidRequest as error:
        return error
    error_message = _compile_in_subprocess(grammar)
    return _invalid(_reason(error_message)) if error_message else grammar


def _to_grammar(schema: dict[str, Any]) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=_GRAMMAR_OPTIONS)
    except ValueError as error:  # a lone surrogate, or an integer of more than 64 bits
        raise _invalid(_reason(str(error))) from None


def _parse(json_schema: str) -> dict[str, Any]:
    """Return the schema as an object.

    llguidance must not get the raw text. It would paste the text verbatim into a grammar, which
    allows injection.
    """
    if len(json_schema) > MAX_SCHEMA_CHARS:
        raise InvalidRequest(
            f"{REQUEST_FIELD}: the schema has {len(json_schema)} characters; the limit is"
            f" {MAX_SCHEMA_CHARS}",
            REQUEST_FIELD,
            MAX_SCHEMA_CHARS,
            len(json_schema),
        )
    try:
        schema = json.loads(json_schema)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the schema is not valid JSON: {_reason(str(error))}") from None
    if not isinstance(schema, dict):
        raise _invalid("the schema must be a JSON object")
    if "x-guidance" in schema:  # would set llguidance's options
        raise _invalid("x-guidance is not supported")
    return schema


def _compile_in_subprocess(grammar: str) -> str:
    """Compile a grammar with a byte-level tokenizer, in a subprocess. Return its error, or ""."""
    search_path = json.dumps([path for path in sys.path if path])
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL_COMPILE_SCRIPT, search_path],
            input=json.dumps((grammar, _PARSER_LIMITS)),
            capture_output=True,
            text=True,
            timeout=_TRIAL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return _TOO_COMPLEX
    if trial.returncode < 0:  # killed by a signal, at its limit of CPU time or memory
        return _TOO_COMPLEX
    trial.check_returncode()
    return str(json.loads(trial.stdout))


def _make_ll_tokenizer(
    tokenizer: Tokenizer, eos_ids: frozenset[int], vocab_size: int
) -> LLTokenizer:
    """Return llguidance's form of a tokenizer.

    llguidance requires every EOS id to be in the vocabulary, so missing ids are added as special
    tokens.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    size = max(copy.get_vocab_size(), max(eos_ids) + 1)
    copy.add_special_tokens(
        [f"<|unnamed {number}|>" for number in range(copy.get_vocab_size(), size)]
    )
    return LLTokenizer(copy.to_str(), n_vocab=max(vocab_size, size), eos_token=sorted(eos_ids))


def _reason(error: str) -> str:
    """Return one short line for one of llguidance's errors."""
    if error.startswith("NoExtension"):  # its parser is stuck
        return "nothing satisfies the schema"
    line = " ".join(error.split())
    return line if len(line) <= 200 else line[:199] + "…"


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"{REQUEST_FIELD}: {message}", REQUEST_FIELD)
