from __future__ import annotations

import json
import random

import pytest

from raylens.core.errors import InvalidRequest
from raylens.core.types import Tool, ToolCallDelta, Tools
from raylens.engine.grammar import AnswerFormat
from raylens.engine.stop_strings import StopStrings
from raylens.engine.structured import GrammarCompiler, GrammarState
from raylens.engine.tool_calls import ParsedText, TaggedParser, ToolCallStyle, make_parser
from testing.tokenizers import byte_tokenizer
from tests.unit.raylens.engine.fakes import EOS

POINT = json.dumps(
    {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["x", "note"],
    }
)
TOOLS = (Tool("look", POINT, "{}"), Tool("read.text", '{"type": "object"}', "{}"))
LOOK = '<tool_call>\n{"name": "look", "arguments": {"x": 1, "note": "}\\"<{"}}\n</tool_call>'
READ = '<tool_call>\n{"name": "read.text", "arguments": {}}\n</tool_call>'


def parse(text: str, sizes: random.Random | None = None) -> ParsedText:
    """Return everything that a parser returns for a text, given in pieces of random sizes."""
    parser = TaggedParser(frozenset({"look", "read.text"}))
    texts = []
    calls: list[ToolCallDelta] = []
    while text:
        size = sizes.randint(1, 9) if sizes else len(text)
        parsed = parser.push(text[:size])
        text = text[size:]
        texts.append(parsed.text)
        calls += parsed.calls
    return ParsedText("".join(texts) + parser.flush(), tuple(calls))


def merge(calls: tuple[ToolCallDelta, ...]) -> list[tuple[str, str]]:
    """Return (name, arguments) of each call."""
    merged: list[tuple[str, str]] = []
    for call in calls:
        if call.name is not None:
            assert call.index == len(merged)
            merged.append((call.name, ""))
        name, arguments = merged[call.index]
        merged[call.index] = (name, arguments + call.arguments)
    return merged


ARGUMENTS = '{"x": 1, "note": "}\\"<{"}'
CASES = {
    "": ("", []),
    "two circles": ("two circles", []),
    LOOK: ("", [("look", ARGUMENTS)]),
    f"I look.\n{LOOK}": ("I look.", [("look", ARGUMENTS)]),
    f"{LOOK}\n{READ}": ("", [("look", ARGUMENTS), ("read.text", "{}")]),
    f"{READ} then {READ} so": ("then so", [("read.text", "{}"), ("read.text", "{}")]),
    LOOK.replace("\n", ""): ("", [("look", ARGUMENTS)]),
    LOOK.replace("arguments", "parameters"): ("", [("look", ARGUMENTS)]),
    "<tool_call>nonsense</tool_call>": ("<tool_call>nonsense</tool_call>", []),
    READ.replace("read.text", "unknown"): (READ.replace("read.text", "unknown"), []),
    "a <tool and a < b": ("a <tool and a < b", []),
    "a <tool_call": ("a <tool_call", []),
    "Use <tool_call> tags": ("Use <tool_call> tags", []),
    '<tool_call>\n{"name": "lo': ("", []),
    f'{READ}\n<tool_call>\n{{"name": "lo': ("", [("read.text", "{}")]),
    f"{READ}\n<tool": ("", [("read.text", "{}")]),
    LOOK[:-20]: ("", [("look", '{"x": 1, "note": "}')]),
    "<tool_call>" + "x" * 600: ("<tool_call>" + "x" * 600, []),
}


@pytest.mark.parametrize("text", CASES)
def test_calls_are_found_however_the_text_is_cut(text) -> None:
    expected_text, expected_calls = CASES[text]
    for seed in range(20):
        parsed = parse(text, random.Random(seed) if seed else None)
        assert (parsed.text, merge(parsed.calls)) == (expected_text, expected_calls)


def test_arguments_come_before_the_call_is_complete() -> None:
    parser = TaggedParser(frozenset({"look"}))
    head = LOOK[: LOOK.index('{"x"')]
    assert parser.push(head).calls == ()
    assert parser.push('{"x": ').calls == (
        ToolCallDelta(0, "look"),
        ToolCallDelta(0, arguments='{"x": '),
    )
    assert parser.push("1").calls == (ToolCallDelta(0, arguments="1"),)


@pytest.mark.parametrize("required", [(), ("look",)])
@pytest.mark.parametrize("end", [3, len("<tool_call>"), 20])
def test_the_beginning_of_a_call_is_no_text(required, end) -> None:
    parser = make_parser(Tools(TOOLS, required), ToolCallStyle.TAGGED)
    parsed = parser.push(LOOK[:end])
    is_text = not required and end < len("<tool_call>")
    assert parsed.text + parser.flush() == (LOOK[:end] if is_text else "")
    assert parsed.calls == ()


@pytest.mark.parametrize("stop", ["\n", "name", "tool", "}", "<", '"x"'])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_no_stop_string_ends_a_call(stop: str, size: int) -> None:
    parser = TaggedParser(frozenset({"look"}), StopStrings((stop,)))
    calls: list[ToolCallDelta] = []
    for start in range(0, len(LOOK), size):
        parsed = parser.push(LOOK[start : start + size])
        calls += parsed.calls
        assert parsed.text == ""
    assert merge(tuple(calls)) == [("look", ARGUMENTS)]
    assert (parser.stopped, parser.has_open_call) == (False, False)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_stop_string_ends_the_text_around_calls(size: int) -> None:
    text = f"I stand. {READ} So I sto{LOOK}pp; stop here {READ}"
    parser = TaggedParser(frozenset({"look", "read.text"}), StopStrings(("stop",)))
    texts = []
    calls: list[ToolCallDelta] = []
    for start in range(0, len(text), size):
        parsed = parser.push(text[start : start + size])
        texts.append(parsed.text)
        calls += parsed.calls
    assert "".join(texts) + parser.flush() == "I stand. So I stopp; "
    assert [name for name, _ in merge(tuple(calls))] == ["read.text", "look"]
    assert parser.stopped


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        ("\n", "One line\n", "One line"),
        ("\n\n", "One line\n\n\n\n", "One line"),
        ("\n", f"One line\n{LOOK}", "One line"),
        ("<", "a < b", "a "),
        ("<", "a <", "a "),
        ("tool", "a <tool", "a <"),
        ("b", "a  ", "a  "),
    ],
)
def test_a_stop_string_of_white_space_or_a_tags_beginning_ends_the_text(
    stop: str, text: str, expected: str
) -> None:
    for size in (1, len(text)):
        parser = TaggedParser(frozenset({"look"}), StopStrings((stop,)))
        pieces = [parser.push(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(piece.text for piece in pieces) + parser.flush() == expected
        assert parser.final_chars == len(expected)
        assert not any(piece.calls for piece in pieces)


def test_a_continued_answer_keeps_its_leading_space() -> None:
    for continues, expected in ((True, " world"), (False, "world")):
        parser = make_parser(Tools(TOOLS), ToolCallStyle.TAGGED, (), continues)
        assert parser.push(" world").text + parser.flush() == expected


def test_a_call_is_open_until_its_arguments_are_complete() -> None:
    for style, end in ((ToolCallStyle.TAGGED, LOOK.index("}\n")), (ToolCallStyle.ARGUMENTS, None)):
        parser = make_parser(Tools(TOOLS, ("look",)), style)
        text = LOOK[:end] if end else ARGUMENTS
        parser.push(text[:-1])
        assert parser.has_open_call
        parser.push(text[-1])
        assert not parser.has_open_call


def test_bare_arguments_are_a_call() -> None:
    parser = make_parser(Tools(TOOLS, ("look",)), ToolCallStyle.ARGUMENTS)
    assert parser.push("") == ParsedText("")
    assert parser.push('{"x"') == ParsedText("", (ToolCallDelta(0, "look", '{"x"'),))
    assert parser.push(": 1}") == ParsedText("", (ToolCallDelta(0, None, ": 1}"),))
    assert parser.flush() == ""


class TestGrammar:
    @pytest.fixture(scope="class")
    def compiler(self) -> GrammarCompiler:
        return GrammarCompiler(byte_tokenizer(), frozenset({EOS}), 257)

    def accepts(self, compiler: GrammarCompiler, answer_format: AnswerFormat, text: str) -> bool:
        """Whether an answer may be this text."""
        state: GrammarState = compiler.compile(answer_format).state
        try:
            for token in (*text.encode(), EOS):
                state.accept(token)
        except ValueError:
            return False
        return True

    @pytest.mark.parametrize(
        ("tools", "schema", "accepted", "refused"),
        [
            (Tools(TOOLS), None,
             ["", "words", LOOK, READ, f"words {LOOK}", f"{LOOK}\n{READ}", f"{READ} words"],
             [LOOK[:-3], LOOK.replace("look", "loop"), LOOK.replace("1", "true")]),
            (Tools(TOOLS, parallel=False), None, ["words", LOOK], [LOOK.replace('"x"', '"y"')]),
            (Tools(TOOLS, ("look",)), None, [LOOK], ["", "words", READ, f"{LOOK}\n{LOOK}"]),
            (Tools(TOOLS, ("look", "read.text")), None, [LOOK, READ], ["words", f"a {LOOK}"]),
            (Tools(TOOLS), '{"const": 5}', ["5", LOOK, f"{LOOK}\n{READ}"], ["words", f"5{LOOK}"]),
            (Tools(TOOLS, parallel=False), '{"const": 5}', ["5", LOOK], [f"{LOOK}\n{READ}"]),
        ],
    )  # fmt: skip
    def test_an_answer_calls_what_it_may(self, compiler, tools, schema, accepted, refused) -> None:
        answer_format = AnswerFormat(schema, tools)
        for text in accepted:
            assert self.accepts(compiler, answer_format, text), text
        for text in refused:
            assert not self.accepts(compiler, answer_format, text), text

    def test_the_only_function_takes_bare_arguments(self, compiler) -> None:
        answer_format = AnswerFormat(None, Tools(TOOLS, ("look",)), ToolCallStyle.ARGUMENTS)
        assert self.accepts(compiler, answer_format, '{"x": 1, "note": ""}')
        assert not self.accepts(compiler, answer_format, LOOK)

    def test_a_functions_schema_is_refused_under_its_own_name(self, compiler) -> None:
        field = "tools.1.function.parameters"
        tools = Tools((Tool("a", "{}", "{}"), Tool("b", "[]", "{}", field)))
        with pytest.raises(InvalidRequest, match=r"^tools\.1\.function\.parameters: ") as caught:
            compiler.compile(AnswerFormat(None, tools))
        assert caught.value.field == field
