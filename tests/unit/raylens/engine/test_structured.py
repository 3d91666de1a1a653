from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer

from raylens.core.errors import InvalidRequest
from raylens.core.types import SamplingParams
from raylens.engine.sampling import Sampler, sample_all
from raylens.engine.structured import MAX_SCHEMA, Grammar, Grammars
from tests.unit.raylens.engine.fakes import EOS, byte_tokenizer

POCKET = Path(__file__).parents[4] / "models" / "pocket" / "smolvlm" / "tokenizer.json"
ANYTHING = {"type": "object"}
SCENE = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "triangle"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 20},
        "size": {"type": "number"},
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 6},
            "minItems": 1,
            "maxItems": 3,
        },
        "box": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
            "maxItems": 2,
        },
        "note": {"anyOf": [{"type": "null"}, {"const": "größe — 大"}]},
        "ok": {"type": "boolean"},
    },
    "required": ["shape", "count", "tags", "note"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[Any] = [
    ANYTHING,
    SCENE,
    TREE,
    {"enum": ["é", "日本", '"quoted"', 7, None]},
    {"type": "string", "maxLength": 12},
    {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    {"type": "number", "minimum": -2, "maximum": 3},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
]


def pocket() -> tuple[Tokenizer, frozenset[int], int]:
    tokenizer = Tokenizer.from_file(str(POCKET))
    return tokenizer, frozenset({known(tokenizer, "<end_of_utterance>"), 0}), 600


def known(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def by_bytes() -> tuple[Tokenizer, frozenset[int], int]:
    return byte_tokenizer(), frozenset({EOS}), 257


MODELS = {"pocket": pocket, "bytes": by_bytes}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(*by_bytes())


def allowed(grammar: Grammar, vocabulary: int = 257) -> set[int]:
    return set(torch.isfinite(grammar.allow(torch.zeros(vocabulary))).nonzero().flatten().tolist())


def say(grammar: Grammar, text: str) -> Grammar:
    for byte in text.encode():
        grammar.accept(byte)
    return grammar


def closing(tokenizer: Tokenizer, vocabulary: int) -> torch.Tensor:
    """What makes a random walk come to its end: it likes tokens that close something."""
    liked = torch.zeros(vocabulary)
    for symbol in ('"', "}", "]", '"}', "]}"):
        token_id = tokenizer.token_to_id(symbol)
        if token_id is not None:
            liked[token_id] = 4.0
    return liked


def walk(
    model: tuple[Tokenizer, frozenset[int], int], grammar: Grammar, seed: int, most: int = 3000
) -> str:
    """What a model with random logits says, which the grammar alone brings to an end."""
    tokenizer, eos_ids, vocabulary = model
    noise = torch.Generator().manual_seed(seed)
    liked = closing(tokenizer, vocabulary)
    liked[list(eos_ids)] = 2.0
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), grammar=grammar)
    said: list[int] = []
    for _ in range(most):
        token_id = sampler.choose(torch.randn(vocabulary, generator=noise) + liked)
        if token_id in eos_ids:
            return tokenizer.decode(said, skip_special_tokens=True)
        said.append(token_id)
    raise AssertionError(f"no end: {tokenizer.decode(said)[:300]}")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_random_walks_end_in_what_the_schema_says(name, schema) -> None:
    model = MODELS[name]()
    compiled = Grammars(*model).compile(json.dumps(schema))
    for seed in range(12):
        jsonschema.validate(json.loads(walk(model, compiled.copy(), seed)), schema)


def test_text_in_strings_may_be_any_unicode(grammars) -> None:
    text = '{"k": "naïve 日本 🙂 \\n \\" \\\\"}'
    assert say(grammars.compile(json.dumps(ANYTHING)), text).complete


def test_only_the_end_follows_a_complete_answer(grammars) -> None:
    grammar = say(grammars.compile('{"const": 1}'), "")
    assert not grammar.complete
    say(grammar, "1")
    assert grammar.complete
    assert allowed(grammar) == {EOS}
    grammar.accept(EOS)
    assert grammar.complete


def test_where_more_may_follow_the_end_may_too(grammars) -> None:
    grammar = say(grammars.compile('{"type": "integer", "minimum": 0}'), "12")
    assert not grammar.complete
    assert allowed(grammar) == {EOS, *b"0123456789"}


def test_all_ends_of_a_model_are_allowed_and_accepted() -> None:
    tokenizer, eos_ids, vocabulary = pocket()
    assert len(eos_ids) == 2
    grammar = Grammars(tokenizer, eos_ids, vocabulary).compile('{"const": 1}')
    assert not allowed(grammar, vocabulary) & eos_ids
    grammar.accept(known(tokenizer, "1"))
    assert allowed(grammar, vocabulary) == eos_ids
    for eos in eos_ids:
        ended = grammar.copy()
        ended.accept(eos)
        assert ended.complete


def test_ids_beyond_the_tokenizer_and_special_tokens_are_never_allowed() -> None:
    tokenizer, eos_ids, vocabulary = pocket()
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    grammar = Grammars(tokenizer, eos_ids, vocabulary).compile('{"type": "string"}')
    grammar.accept(known(tokenizer, '"'))
    inside = allowed(grammar, vocabulary)
    assert len(inside) > 100
    assert not inside & (special | set(range(tokenizer.get_vocab_size(), vocabulary)))


def test_logits_narrower_than_the_tokenizer_do() -> None:
    grammar = Grammars(byte_tokenizer(), frozenset({3}), 128).compile('{"type": "string"}')
    grammar.accept(ord('"'))
    assert ord("a") in allowed(grammar, 128)


def test_allow_leaves_its_argument_and_the_allowed_logits_alone(grammars) -> None:
    logits = torch.randn(257)
    before = logits.clone()
    masked = grammars.compile(json.dumps(ANYTHING)).allow(logits)
    assert torch.equal(logits, before)
    assert masked[ord("{")] == logits[ord("{")]
    assert torch.isfinite(masked).sum() == 1


def test_white_space_is_one_space_or_one_line_and_its_indent(grammars) -> None:
    compiled = grammars.compile(json.dumps(TREE))
    say(compiled.copy(), json.dumps({"kids": [{}, {"kids": []}]}, indent=4))
    say(compiled.copy(), json.dumps({"kids": [{}, {"kids": []}]}))
    say(compiled.copy(), '{"kids":[{},{"kids":[]}]}')
    for endless in (" " * 3, "\n" * 2, "\n" + " " * 33, "\t"):
        with pytest.raises(ValueError, match="forbids"):
            say(compiled.copy(), "{" + endless)


def test_a_forbidden_token_is_an_error(grammars) -> None:
    with pytest.raises(ValueError, match="forbids token 97"):
        grammars.compile(json.dumps(ANYTHING)).accept(97)


def test_copies_go_their_own_ways(grammars) -> None:
    first = say(grammars.compile('{"enum": ["ab", "cd"]}'), '"')
    second = say(first.copy(), "ab")
    assert allowed(first) == {ord("a"), ord("c")}
    assert allowed(second) == {ord('"')}
    assert allowed(grammars.compile('{"enum": ["ab", "cd"]}')) == {ord('"')}


def test_rows_with_and_without_a_grammar_share_a_batch(grammars) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 3}
    grammar = grammars.compile(json.dumps(schema))
    free = SamplingParams(temperature=1.0, seed=5)
    mixed = [Sampler(SamplingParams()), Sampler(free, grammar=grammar), Sampler(free)]
    alone = Sampler(free)
    noise = torch.Generator().manual_seed(2)
    said: list[int] = []
    while EOS not in said:
        logits = torch.randn(3, 257, generator=noise)
        greedy, structured, sampled = sample_all(logits, mixed)
        assert greedy == int(logits[0].argmax())
        assert sampled == alone.choose(logits[2])
        assert isinstance(structured, int)
        said.append(structured)
    jsonschema.validate(json.loads(bytes(said[:-1])), schema)


def test_a_penalty_or_a_best_token_never_leaves_the_grammar(grammars) -> None:
    logits = torch.zeros(257)
    logits[ord("x")] = 100.0
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=2.0, frequency_penalty=2.0)
    sampler = Sampler(params, grammar=grammars.compile('{"const": "aaaa"}'))
    assert bytes(sampler.choose(logits) for _ in range(6)) == b'"aaaa"'


def test_logits_that_are_no_numbers_are_an_error_also_under_the_mask(grammars) -> None:
    logits = torch.zeros(257)
    logits[ord("x")] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        Sampler(SamplingParams(), grammar=grammars.compile(json.dumps(ANYTHING))).choose(logits)


BAD = {
    "not JSON": "{",
    "injection": '{}}, {"lark_grammar": "start: /a/"',
    "deep": "[" * 60_000,
    "deep objects": '{"items":' * 5_000 + "{}" + "}" * 5_000,
    "no object": "[]",
    "a string": '"object"',
    "unknown type": '{"type": "circle"}',
    "wrong keyword": '{"type": "object", "properties": 3}',
    "look-around": '{"type": "string", "pattern": "(?=a)b"}',
    "not supported": '{"not": {"type": "string"}}',
    "elsewhere": '{"$ref": "https://example.com/schema.json"}',
    "a file": '{"$ref": "file:///etc/passwd"}',
    "dangling": '{"$ref": "#/$defs/none"}',
    "nothing": '{"enum": []}',
    "only itself": '{"$ref": "#"}',
    "surrogate": '{"const": "\\ud800"}',
    "options": '{"type": "object", "x-guidance": {"whitespace_flexible": true}}',
    "too long": json.dumps({"enum": ["a" * MAX_SCHEMA]}),
    "endless digits": '{"const": ' + "9" * 5_000 + "}",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_schema_is_an_invalid_request(grammars, name) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammars.compile(BAD[name])
    error = caught.value
    assert error.field == "response_format"
    assert error.message.startswith("response_format: ")
    assert "\n" not in error.message
    assert 20 < len(error.message) < 300


ABUSES = {
    "multiples": {"type": "integer", "multipleOf": 99_999_999},
    "joined": {"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]},
}


@pytest.mark.parametrize("name", ABUSES)
def test_a_schema_that_would_take_forever_is_refused_within_its_time(grammars, name) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="response_format: the schema is too complex"):
        grammars.compile(json.dumps(ABUSES[name]))
    assert time.monotonic() - began < 20


def test_a_schema_is_compiled_once(grammars) -> None:
    schema = json.dumps(SCENE)
    grammars.compile(schema)
    began = time.monotonic()
    for _ in range(20):
        grammars.compile(schema)
    assert time.monotonic() - began < 0.5


def test_a_schema_serves_however_many_answers_have_followed_it(grammars) -> None:
    """This pattern's automaton grows with what is said: answers that shared its states would use up
    their number."""
    schema = json.dumps({"type": "string", "pattern": "^(a|b)*a(a|b){40}$"})
    rng = random.Random(0)
    for _ in range(400):
        grammar = say(grammars.compile(schema), '"')
        for _ in range(60):
            assert allowed(grammar)
            say(grammar, rng.choice("ab"))


def test_any_thread_may_compile(grammars) -> None:
    model = by_bytes()
    schemas = [json.dumps({"const": f"number {i % 5}"}) for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda schema: walk(model, grammars.compile(schema), 1), schemas))
    assert said == [json.dumps(f"number {i % 5}") for i in range(40)]
