"""Structured output: answers that follow a JSON schema, or call a tool.

llguidance computes which tokens would violate the grammar. Their logits are masked.

Source: https://github.com/guidance-ai/llguidance (an Earley parser over derivatives of regular
expressions).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raylens.core.errors import InvalidRequest
from raylens.engine.grammar import AnswerFormat, build_grammar
from raylens.engine.schemas import SCHEMA_FIELD, TOOLS_FIELD, invalid, reason
from raylens.engine.tool_calls import CLOSING, OPENING

CACHED_FORMATS = 16
_MAX_PARTS_TRIED = 8
"""Schemas of a request that are compiled one by one to find which of them is invalid."""

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
    matcher.try_consume_tokens([32]) and matcher.compute_bitmask()
    json.dump((matcher.get_error(), matcher.get_grammar_warnings()), sys.stdout)
except BaseException as error:
    json.dump((repr(error), []), sys.stdout)
"""
_TRIAL_TIMEOUT_S = 30.0
"""Wall-clock timeout; generous because the machine may be busy. CPU time is limited to 2 s."""

_FORBIDDEN = ("doesn't satisfy the grammar", "parser stopped")
"""Parts of llguidance's errors for a token that the grammar forbids. Others are its limits."""
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

        Text that the grammar leaves no choice about, such as the name of a property, is spelled in
        the tokenizer's own way: only its next token can come.

        Raises ``InvalidRequest`` like ``mask_logits``.
        """
        size = -(-self._vocab_size // 8)
        forced = self._matcher.compute_ff_tokens()
        if forced and forced[0] < self._vocab_size:
            bits = np.zeros(size, dtype=np.uint8)
            bits[forced[0] // 8] = 1 << forced[0] % 8
            return bits
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise invalid(f"the schema cannot be enforced: {reason(self._matcher.get_error())}")
        return bits[:size]

    def accept(self, token_id: int) -> None:
        """Advance past a token.

        Raises ``ValueError`` if the token is forbidden, and ``InvalidRequest`` like
        ``mask_logits``. The state is then unusable.
        """
        if self._matcher.consume_token(token_id):
            return
        error = reason(self._matcher.get_error())
        if not any(part in error for part in _FORBIDDEN):
            raise invalid(f"the schema cannot be enforced: {error}")
        raise ValueError(f"the schema forbids token {token_id}: {error}")

    def try_accept(self, token_ids: Sequence[int]) -> bool:
        """Advance past tokens. Returns whether the grammar allows all of them."""
        return bool(self._matcher.try_consume_tokens(list(token_ids)) == len(token_ids))

    def copy(self) -> GrammarState:
        """Return an independent copy."""
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)


class CompiledGrammar(NamedTuple):
    """The state of a new answer, and remarks on what of its schema is not enforced."""

    state: GrammarState
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Grammar:
    """A grammar that is known to compile."""

    text: str
    warnings: tuple[str, ...]


class GrammarCompiler:
    """Compiles answer formats for one model. Thread-safe.

    ``vocab_size`` is the width of the logits, which can exceed the tokenizer's vocabulary. Each of
    ``eos_ids`` can end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = _make_ll_tokenizer(tokenizer, eos_ids, vocab_size)
        self._vocab_size = vocab_size
        self._tags_are_tokens = all(tokenizer.token_to_id(tag) for tag in (OPENING, CLOSING))
        self._validate = lru_cache(CACHED_FORMATS)(self._validate_uncached)

    def compile(self, answer_format: AnswerFormat, answer_start: str = "") -> CompiledGrammar:
        """Return the state of a new answer in the format's grammar.

        It is ready for the first token. If ``answer_start`` is the beginning of such an answer, the
        state is the one after it. It may also be text before the answer.

        A format not seen before takes about 0.1 s and a subprocess. As in vLLM, what llguidance
        can't enforce is ignored, with a warning.

        Raises ``InvalidRequest`` about "response_format" or "tools" if a text is not a schema,
        cannot be satisfied, or takes more than 2 s or 1 GiB to compile.
        """
        grammar = self._validate(answer_format)
        if isinstance(grammar, InvalidRequest):
            raise grammar
        # Not copied from a cached matcher: copies share lexer states, which count together toward
        # the limit.
        matcher = LLMatcher(
            self._tokenizer, grammar.text, log_level=0, limits=LLParserLimits(**_PARSER_LIMITS)
        )
        if matcher.is_error():
            raise invalid(reason(matcher.get_error()), _field_of(answer_format))
        state = GrammarState(matcher, self._vocab_size)
        try:
            state.bitmask()  # the dearest one: later it would hold up the answers of others
        except InvalidRequest as error:
            raise error.about(_field_of(answer_format)) from None
        continued = state.copy() if answer_start else state
        if continued.try_accept(self._tokenizer.tokenize_str(answer_start)):
            state = continued
        return CompiledGrammar(state, grammar.warnings)

    def _validate_uncached(self, answer_format: AnswerFormat) -> _Grammar | InvalidRequest:
        """Return the grammar, or the error.

        Errors are returned, not raised, so that they are cached too. They take as long to find.
        """
        error = ""
        for lenient in (False, True):
            try:
                grammar = build_grammar(answer_format, lenient)
            except InvalidRequest as invalid_request:
                return invalid_request
            trial = _compile_in_subprocess(grammar.text)
            if not trial.error:
                if self._tags_are_tokens:
                    grammar = build_grammar(answer_format, lenient, tags_are_tokens=True)
                warnings = (*grammar.ignored, *trial.warnings)
                return _Grammar(grammar.text, _describe(warnings, _field_of(answer_format)))
            error = error or trial.error
            if trial.error == _TOO_COMPLEX:
                break
        return invalid(reason(error), _find_faulty_field(answer_format))


def _find_faulty_field(answer_format: AnswerFormat) -> str:
    """Return the field of the schema that doesn't compile, if it can be told in a few trials."""
    parts = answer_format.parts
    for field, part in list(parts.items())[:_MAX_PARTS_TRIED]:
        if len(parts) == 1 or _compile_in_subprocess(build_grammar(part, lenient=True).text).error:
            return field
    return _field_of(answer_format)


def _field_of(answer_format: AnswerFormat) -> str:
    return TOOLS_FIELD if answer_format.json_schema is None else SCHEMA_FIELD


def _describe(warnings: Sequence[str], field: str) -> tuple[str, ...]:
    """Return llguidance's warnings as warnings about a request."""
    return tuple(f"{field}: not enforced: {reason(warning)}" for warning in dict.fromkeys(warnings))


class _Trial(NamedTuple):
    error: str
    warnings: list[str]


def _compile_in_subprocess(grammar: str) -> _Trial:
    """Compile a grammar with a byte-level tokenizer, in a subprocess.

    Returns its error, or "", and its warnings.
    """
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
        return _Trial(_TOO_COMPLEX, [])
    if trial.returncode < 0:  # killed by a signal, at its limit of CPU time or memory
        return _Trial(_TOO_COMPLEX, [])
    trial.check_returncode()
    return _Trial(*json.loads(trial.stdout))


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
