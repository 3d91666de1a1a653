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
from raylens.core.types import SamplingParams, Tool, Tools
from raylens.engine.grammar import AnswerFormat
from raylens.engine.sampling import AnswerSampler, sample_rows
from raylens.engine.schemas import MAX_PATTERN_CHARS, MAX_SCHEMA_CHARS
from raylens.engine.structured import GrammarCompiler, GrammarState
from testing.tokenizers import byte_tokenizer
from tests.unit.raylens.engine.fakes import EOS, compile_schema

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
    return tokenizer, frozenset({id_of(tokenizer, "<end_of_utterance>"), 0}), 600


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def byte_level() -> tuple[Tokenizer, frozenset[int], int]:
    return byte_tokenizer(), frozenset({EOS}), 257


MODELS = {"pocket": pocket, "bytes": byte_level}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(*byte_level())


def allowed_ids(grammar: GrammarState, vocab_size: int = 257) -> set[int]:
    is_allowed = torch.isfinite(grammar.mask_logits(torch.zeros(vocab_size)))
    return set(is_allowed.nonzero().flatten().tolist())


def accept(grammar: GrammarState, text: str) -> GrammarState:
    for byte in text.encode():
        grammar.accept(byte)
    return grammar


def closing_bias(tokenizer: Tokenizer, vocab_size: int) -> torch.Tensor:
    """Return a bias for tokens that close something, so that random walks end."""
    bias = torch.zeros(vocab_size)
    for symbol in ('"', "}", "]", '"}', "]}"):
        token_id = tokenizer.token_to_id(symbol)
        if token_id is not None:
            bias[token_id] = 4.0
    return bias


def walk(
    model: tuple[Tokenizer, frozenset[int], int],
    grammar: GrammarState,
    seed: int,
    max_tokens: int = 3000,
) -> str:
    """Return an answer of random tokens, which only the grammar constrains."""
    tokenizer, eos_ids, vocab_size = model
    noise = torch.Generator().manual_seed(seed)
    bias = closing_bias(tokenizer, vocab_size)
    bias[list(eos_ids)] = 2.0
    sampler = AnswerSampler(SamplingParams(temperature=1.0, seed=seed), grammar=grammar)
    token_ids: list[int] = []
    for _ in range(max_tokens):
        token_id = sampler.sample(torch.randn(vocab_size, generator=noise) + bias)
        if token_id in eos_ids:
            return tokenizer.decode(token_ids, skip_special_tokens=True)
        token_ids.append(token_id)
    raise AssertionError(f"no end: {tokenizer.decode(token_ids)[:300]}")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_random_walks_end_with_an_answer_that_follows_the_schema(name, schema) -> None:
    model = MODELS[name]()
    grammar = compile_schema(GrammarCompiler(*model), json.dumps(schema))
    for seed in range(12):
        jsonschema.validate(json.loads(walk(model, grammar.copy(), seed)), schema)


def test_text_in_strings_may_be_any_unicode(compiler) -> None:
    text = '{"k": "naïve 日本 🙂 \\n \\" \\\\"}'
    assert accept(compile_schema(compiler, json.dumps(ANYTHING)), text).is_complete


def test_only_the_end_follows_a_complete_answer(compiler) -> None:
    grammar = accept(compile_schema(compiler, '{"const": 1}'), "")
    assert not grammar.is_complete
    accept(grammar, "1")
    assert grammar.is_complete
    assert allowed_ids(grammar) == {EOS}
    grammar.accept(EOS)
    assert grammar.is_complete


def test_the_end_is_optional_while_more_can_follow(compiler) -> None:
    grammar = accept(compile_schema(compiler, '{"type": "integer", "minimum": 0}'), "12")
    assert not grammar.is_complete
    assert allowed_ids(grammar) == {EOS, *b"0123456789"}


def test_all_eos_ids_of_a_model_are_allowed_and_accepted() -> None:
    tokenizer, eos_ids, vocab_size = pocket()
    assert len(eos_ids) == 2
    grammar = compile_schema(GrammarCompiler(tokenizer, eos_ids, vocab_size), '{"const": 1}')
    assert not allowed_ids(grammar, vocab_size) & eos_ids
    grammar.accept(id_of(tokenizer, "1"))
    assert allowed_ids(grammar, vocab_size) == eos_ids
    for eos in eos_ids:
        copy = grammar.copy()
        copy.accept(eos)
        assert copy.is_complete


def test_ids_beyond_the_tokenizer_and_special_tokens_are_never_allowed() -> None:
    tokenizer, eos_ids, vocab_size = pocket()
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    grammar = compile_schema(GrammarCompiler(tokenizer, eos_ids, vocab_size), '{"type": "string"}')
    grammar.accept(id_of(tokenizer, '"'))
    in_string = allowed_ids(grammar, vocab_size)
    assert len(in_string) > 100
    assert not in_string & (special | set(range(tokenizer.get_vocab_size(), vocab_size)))


def test_logits_can_be_narrower_than_the_tokenizer() -> None:
    grammar = compile_schema(
        GrammarCompiler(byte_tokenizer(), frozenset({3}), 128), '{"type": "string"}'
    )
    grammar.accept(ord('"'))
    assert ord("a") in allowed_ids(grammar, 128)


def test_masking_changes_neither_its_argument_nor_the_allowed_logits(compiler) -> None:
    logits = torch.randn(257)
    before = logits.clone()
    masked = compile_schema(compiler, json.dumps(ANYTHING)).mask_logits(logits)
    assert torch.equal(logits, before)
    assert masked[ord("{")] == logits[ord("{")]
    assert torch.isfinite(masked).sum() == 1


def test_white_space_is_one_space_after_a_comma_or_a_colon(compiler) -> None:
    grammar = compile_schema(compiler, json.dumps(TREE))
    accept(grammar.copy(), json.dumps({"kids": [{}, {"kids": []}]}))
    accept(grammar.copy(), '{"kids":[{},{"kids":[]}]}')
    for start in (
        " ",
        "\n",
        "{ ",
        "{\n",
        '{"kids":  ',
        '{"kids" ',
        '{"kids": [{},  ',
        '{"kids": [ ',
    ):
        with pytest.raises(ValueError, match="forbids"):
            accept(grammar.copy(), start)


def test_an_answer_begins_with_a_space_if_the_models_answers_do(compiler) -> None:
    answer_format = AnswerFormat(json.dumps(ANYTHING), leading_space=True)
    grammar = compiler.compile(answer_format).state
    assert allowed_ids(grammar) == {ord(" ")}
    accept(grammar, ' {"a": 1}')


@pytest.mark.parametrize(
    ("start", "following"),
    [
        ('{"a":', "1}"),
        ('{"a": ', "1}"),
        ('{"a": 1', "2}"),
        ("", '{"a": 1}'),
        ("Here it is: ", '{"a": 1}'),
        ('{"b": ', '{"a": 1}'),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_an_answer_goes_on_where_its_beginning_ends(name, start, following) -> None:
    tokenizer, eos_ids, vocab_size = MODELS[name]()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    compiler = GrammarCompiler(tokenizer, eos_ids, vocab_size)
    state = compiler.compile(AnswerFormat(json.dumps(schema)), start).state
    for token_id in tokenizer.encode(following, add_special_tokens=False).ids:
        state.accept(token_id)
    assert eos_ids & allowed_ids(state, vocab_size)


def test_what_the_grammar_forces_is_spelled_in_the_tokenizers_own_way() -> None:
    tokenizer, eos_ids, vocab_size = pocket()
    schema = {"type": "object", "properties": {"circle": {"type": "integer"}}}
    schema["required"] = ["circle"]
    grammar = compile_schema(GrammarCompiler(tokenizer, eos_ids, vocab_size), json.dumps(schema))
    ids = tokenizer.encode('{"circle":', add_special_tokens=False).ids
    grammar.accept(ids[0])
    for token_id in ids[1:]:
        assert allowed_ids(grammar, vocab_size) == {token_id}
        grammar.accept(token_id)


CLOSED = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": ["object"]},
    {"$defs": {"x": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
     "$ref": "#/$defs/x"},
    {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]},
    {"type": "object", "properties": {"a": {"const": 1}}, "unevaluatedProperties": False},
]  # fmt: skip


@pytest.mark.parametrize("schema", CLOSED, ids=json.dumps)
def test_an_object_that_lists_its_properties_has_no_others(compiler, schema) -> None:
    grammar = accept(compile_schema(compiler, json.dumps(schema)), '{"a":1')
    assert ord("}") in allowed_ids(grammar)
    assert ord(",") not in allowed_ids(grammar)


OPEN = [
    {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": True},
    {"type": "object", "properties": {"a": {"const": 1}}, "patternProperties": {"^b": {}}},
    {"type": "object"},
    {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}},
               {"type": "object", "properties": {"b": {"const": 2}}}]},
    {"type": "object", "properties": {"a": {"const": 1}},
     "anyOf": [{"properties": {"b": {"const": 2}}, "required": ["b"]}, {}]},
    {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"]},
    {"definitions": {"base": {"type": "object", "properties": {"a": {"const": 1}}}},
     "allOf": [{"$ref": "#/definitions/base"},
               {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]}]},
    {"$defs": {"base": {"properties": {"a": {"const": 1}}}},
     "type": "object", "$ref": "#/$defs/base", "properties": {"b": {"const": 2}}},
    {"$defs": {"first/base": {"properties": {"a": {"const": 1}}},
               "base": {"$ref": "#/$defs/first~1base", "properties": {"c": {"const": 3}}}},
     "type": "object",
     "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"const": 2}}, "required": ["b"]}]},
]  # fmt: skip


@pytest.mark.parametrize("schema", OPEN, ids=json.dumps)
def test_an_object_that_may_have_other_properties_stays_open(compiler, schema) -> None:
    accept(compile_schema(compiler, json.dumps(schema)), '{"a":1,"b":2}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "nullable": True},
        {"allOf": [{"$ref": "#/$defs/x"}], "nullable": True},
        {"enum": [1], "nullable": True},
    ],
    ids=json.dumps,
)
def test_openapis_nullable_allows_null(compiler, schema) -> None:
    outer = {"type": "object", "properties": {"a": schema}, "$defs": {"x": {"type": "integer"}}}
    compiled = compiler.compile(AnswerFormat(json.dumps(outer)))
    accept(compiled.state.copy(), '{"a":null}')
    accept(compiled.state, '{"a":1}')
    assert compiled.warnings == ()


@pytest.mark.parametrize(
    "pattern",
    [r"^(?!x)", r"^(?<y>a)\k<y>$", "(?P<y>a)(?P=y)", "[^]", r"\cA", r"\bx"],
)
def test_a_pattern_that_can_not_be_enforced_is_ignored_with_a_warning(compiler, pattern) -> None:
    for member in ({"pattern": pattern}, {"patternProperties": {pattern: {"const": 1}}}):
        kind = "string" if "pattern" in member else "object"
        value = '"zz"' if kind == "string" else '{"zz":2}'
        schema = {"type": "object", "properties": {"a": {"type": kind, **member}}}
        compiled = compiler.compile(AnswerFormat(json.dumps(schema)))
        accept(compiled.state, f'{{"a":{value}')
        (warning,) = compiled.warnings
        assert warning.startswith(f"response_format: not enforced: {next(iter(member))} ")


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{"a":1}'),
        ({"type": None, "properties": {"a": {"properties": {}}}}, '{"a":{}}'),
        ({"items": {"type": "integer"}}, "[1]"),
        ({"anyOf": [{"properties": {"a": {"const": 1}}}, {"items": {"const": 2}}]}, "[2]"),
        ({"type": "object", "properties": {"a": {"type": "integer", "enum": None}}}, '{"a":1}'),
        ({"type": "object", "properties": {"a": {"const": None}}, "required": None}, '{"a":null}'),
    ],
    ids=json.dumps,
)
def test_a_schema_without_a_type_is_of_what_it_describes(compiler, schema, answer) -> None:
    accept(compile_schema(compiler, json.dumps(schema)), answer)
    grammar = compile_schema(compiler, json.dumps(schema))
    assert not {ord('"'), ord("t"), ord("1")} & set(allowed_ids(grammar))


def test_a_property_called_like_a_keyword_is_a_property(compiler) -> None:
    inner = {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}
    for name in ("allOf", "properties", "$defs", "enum", "required"):
        schema = {"type": "object", "properties": {name: inner}, "required": [name]}
        grammar = compile_schema(compiler, json.dumps(schema))
        accept(grammar, f'{{"{name}":{{"x":1')
        assert ord(",") not in allowed_ids(grammar)


UNENFORCED = {
    "uniqueItems": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "not": {"not": {"type": "string"}},
    "if": {"type": "object", "if": {}, "then": {}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "oneOf": {"oneOf": [{"type": "string"}, {"minLength": 2}]},
    "format": {"type": "string", "format": "color"},
    "pattern": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
    "minProperties": {"properties": {"a": {}, "b": {}}, "minProperties": 2},
    "maximum": {"type": "number", "maximum": 1.7976931348623157e308},
    "minimum": {"type": "integer", "minimum": -(2**63)},
}


@pytest.mark.parametrize("keyword", UNENFORCED)
def test_what_can_not_be_enforced_is_ignored_with_a_warning(compiler, keyword) -> None:
    compiled = compiler.compile(AnswerFormat(json.dumps(UNENFORCED[keyword])))
    assert allowed_ids(compiled.state)
    assert any(keyword in warning for warning in compiled.warnings)
    assert all(warning.startswith("response_format: ") for warning in compiled.warnings)


def test_what_is_enforced_has_no_warning(compiler) -> None:
    assert compiler.compile(AnswerFormat(json.dumps(SCENE))).warnings == ()


def test_a_forbidden_token_is_an_error(compiler) -> None:
    with pytest.raises(ValueError, match="forbids token 97"):
        compile_schema(compiler, json.dumps(ANYTHING)).accept(97)


def test_copies_are_independent(compiler) -> None:
    first = accept(compile_schema(compiler, '{"enum": ["ab", "cd"]}'), '"')
    second = accept(first.copy(), "ab")
    assert allowed_ids(first) == {ord("a"), ord("c")}
    assert allowed_ids(second) == {ord('"')}
    assert allowed_ids(compile_schema(compiler, '{"enum": ["ab", "cd"]}')) == {ord('"')}


def test_rows_with_and_without_a_grammar_share_a_batch(compiler) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 3}
    grammar = compile_schema(compiler, json.dumps(schema))
    params = SamplingParams(temperature=1.0, seed=5)
    samplers = [
        AnswerSampler(SamplingParams()),
        AnswerSampler(params, grammar=grammar),
        AnswerSampler(params),
    ]
    alone = AnswerSampler(params)
    noise = torch.Generator().manual_seed(2)
    structured_ids: list[int] = []
    while EOS not in structured_ids:
        logits = torch.randn(3, 257, generator=noise)
        greedy, structured, unconstrained = sample_rows(logits, samplers)
        assert greedy == int(logits[0].argmax())
        assert unconstrained == alone.sample(logits[2])
        assert isinstance(structured, int)
        structured_ids.append(structured)
    jsonschema.validate(json.loads(bytes(structured_ids[:-1])), schema)


def test_neither_penalties_nor_greedy_sampling_violate_the_grammar(compiler) -> None:
    logits = torch.zeros(257)
    logits[ord("x")] = 100.0
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=2.0, frequency_penalty=2.0)
    sampler = AnswerSampler(params, grammar=compile_schema(compiler, '{"const": "aaaa"}'))
    assert bytes(sampler.sample(logits) for _ in range(6)) == b'"aaaa"'


def test_non_finite_logits_are_an_error_even_if_they_are_masked(compiler) -> None:
    logits = torch.zeros(257)
    logits[ord("x")] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        AnswerSampler(
            SamplingParams(), grammar=compile_schema(compiler, json.dumps(ANYTHING))
        ).sample(logits)


INVALID = {
    "not JSON": "{",
    "injection": '{}}, {"lark_grammar": "start: /a/"',
    "deep": "[" * 60_000,
    "deep objects": '{"items":' * 5_000 + "{}" + "}" * 5_000,
    "no object": "[]",
    "a string": '"object"',
    "unknown type": '{"type": "circle"}',
    "wrong keyword": '{"type": "object", "properties": 3}',
    "a broken pattern": '{"type": "string", "pattern": "a["}',
    "elsewhere": '{"$ref": "https://example.com/schema.json"}',
    "a file": '{"$ref": "file:///etc/passwd"}',
    "dangling": '{"$ref": "#/$defs/none"}',
    "nothing": '{"enum": []}',
    "only itself": '{"$ref": "#"}',
    "surrogate": '{"const": "\\ud800"}',
    "options": '{"type": "object", "x-guidance": {"whitespace_flexible": true}}',
    "too long": json.dumps({"enum": ["a" * MAX_SCHEMA_CHARS]}),
    "endless digits": '{"const": ' + "9" * 5_000 + "}",
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_schema_is_an_invalid_request(compiler, name) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compile_schema(compiler, INVALID[name])
    error = caught.value
    assert error.field == "response_format"
    assert error.message.startswith("response_format: ")
    assert "\n" not in error.message
    assert 20 < len(error.message) < 300


TOO_COMPLEX = {
    "multiples": {"type": "integer", "multipleOf": 99_999_999},
    "joined": {"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]},
}


def test_the_invalid_one_of_several_schemas_is_named(compiler) -> None:
    def tool(name: str, schema: Any) -> Tool:
        return Tool(name, json.dumps(schema), "{}", f"tools.{name[1:]}.function.parameters")

    bad = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
    cases: list[tuple[Any, list[Any], str]] = [
        (None, [SCENE, bad], "tools.1.function.parameters"),
        (SCENE, [bad], "tools.0.function.parameters"),
        (bad, [SCENE], "response_format"),
        (None, [bad], "tools.0.function.parameters"),
        (None, [SCENE] * 9 + [bad], "tools"),
    ]
    for schema, parameters, field in cases:
        tools = Tools(tuple(tool(f"f{n}", each) for n, each in enumerate(parameters)))
        json_schema = None if schema is None else json.dumps(schema)
        with pytest.raises(InvalidRequest) as caught:
            compiler.compile(AnswerFormat(json_schema, tools))
        assert caught.value.field == field


@pytest.mark.parametrize("name", TOO_COMPLEX)
def test_a_schema_that_is_too_complex_is_refused_in_time(compiler, name) -> None:
    started = time.monotonic()
    with pytest.raises(
        InvalidRequest, match="response_format: the schema is too complex to enforce"
    ):
        compile_schema(compiler, json.dumps(TOO_COMPLEX[name]))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        ({"type": "string", "pattern": "^" + "(a|b)?" * 9000 + "$"}, 54_002),
        ({"properties": {"a": {"anyOf": [{"pattern": "a?" * 1500}] * 2}}}, 6000),
        ({"patternProperties": {"^" + "a?" * 2500: {}}}, 5001),
    ],
)
def test_long_patterns_are_refused_before_anything_is_compiled(compiler, schema, count) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compile_schema(compiler, json.dumps(schema))
    expected = f"the schema's patterns have {count} characters; the limit is {MAX_PATTERN_CHARS}"
    assert caught.value.message == f"response_format: {expected}"


@pytest.mark.parametrize("pattern", ["(a|b)?" * 680, "a?" * 2047, "[ab]{0,50}" * 400])
def test_a_pattern_that_takes_too_long_is_an_invalid_request(pattern) -> None:
    """Whether that shows at the first token or a later one."""
    tokenizer = Tokenizer.from_file(str(POCKET))
    compiler = GrammarCompiler(tokenizer, frozenset({0}), tokenizer.get_vocab_size())
    schema = json.dumps({"type": "string", "pattern": f"^{pattern}$"})

    def answer() -> None:
        state = compile_schema(compiler, schema)
        for token in tokenizer.encode('"' + "a" * 3000, add_special_tokens=False).ids:
            state.bitmask()
            state.accept(token)

    with pytest.raises(InvalidRequest, match="the schema cannot be enforced"):
        answer()


def test_a_schema_is_compiled_once(compiler) -> None:
    schema = json.dumps(SCENE)
    compile_schema(compiler, schema)
    started = time.monotonic()
    for _ in range(20):
        compile_schema(compiler, schema)
    assert time.monotonic() - started < 0.5


def test_a_schema_can_be_followed_by_any_number_of_answers(compiler) -> None:
    """This pattern's automaton grows with each answer, and its states are limited. Answers must not
    share it."""
    schema = json.dumps({"type": "string", "pattern": "^(a|b)*a(a|b){40}$"})
    rng = random.Random(0)
    for _ in range(400):
        grammar = accept(compile_schema(compiler, schema), '"')
        for _ in range(60):
            assert allowed_ids(grammar)
            accept(grammar, rng.choice("ab"))


def test_schemas_can_be_compiled_in_any_thread(compiler) -> None:
    model = byte_level()
    schemas = [json.dumps({"const": f"number {i % 5}"}) for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(
            lambda schema: walk(model, compile_schema(compiler, schema), 1), schemas
        )
    assert list(answers) == [json.dumps(f"number {i % 5}") for i in range(40)]
