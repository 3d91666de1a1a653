"""``verify``: loads a checkpoint strictly, asks it the questions, and compares its answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi

from models.hub import default_revision, find_family
from models.options import LoadOptions
from models.verify.questions import QUESTIONS, Question, format_findings, normalize_text
from models.verify.reference import Answer, Unverifiable, VerifiableModel, Verifier
from raylens.core.families import families, load_attribute
from raylens.core.types import Findings, SamplingParams, VisionRequest
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model
from raylens.engine.sequence import GenerationSequence, make_sequences

MAX_TOKENS = 48
TIMEOUT_S = 3600.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Line:
    """A question, our answer and the reference's.

    ``is_right``: whether the answer fits the picture. ``is_same``: whether the answers agree. Both
    are None if there is nothing to compare with.
    """

    question: str
    answer: str
    is_right: bool | None
    reference: str
    is_same: bool | None


@dataclass(frozen=True)
class Report:
    """``commit`` is that of the hub's repository; None for a folder."""

    checkpoint: str
    commit: str | None
    lines: tuple[Line, ...]

    @property
    def verified(self) -> bool:
        """Whether every answer equals the reference's.

        Without a reference, whether every answer fits its picture. With one, that doesn't count: a
        model may err, and the reference errs with it.
        """
        compared = [line.is_same for line in self.lines if line.is_same is not None]
        return all(compared) if compared else all(line.is_right is not False for line in self.lines)


def verify(
    checkpoint: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    reference: Path | None = None,
) -> Report:
    """Load a checkpoint, from a folder or the hub, and ask the questions.

    ``reference`` is a checkout of vikhyat/moondream, for Moondream. Raises ``Unverifiable``,
    ``ValueError`` if the checkpoint's family is unknown, and ``OSError`` if there is none.
    """
    if dtype not in DTYPES:
        raise Unverifiable(f"dtype: unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    commit = None
    is_file = checkpoint.endswith(_file_suffixes())
    if is_file and not Path(checkpoint).is_file():
        raise Unverifiable("no such file")
    if not is_file and not Path(checkpoint).is_dir():
        revision = revision or default_revision(checkpoint)
        commit = HfApi().model_info(checkpoint, revision=revision).sha
    options = LoadOptions(revision=commit, dtype=DTYPES[dtype], device=device)
    family = find_family(checkpoint, commit)
    if family.verifier is None:
        raise Unverifiable(f"{checkpoint}: the family {family.name} has no verifier")
    verifier: Verifier = load_attribute(family.verifier)
    verifiable = verifier(checkpoint, options, reference)
    return Report(checkpoint, commit, tuple(_lines(verifiable)))


def _file_suffixes() -> tuple[str, ...]:
    return tuple(suffix for family in families().values() for suffix in family.file_suffixes)


def _lines(verifiable: VerifiableModel) -> Iterator[Line]:
    model = verifiable.model
    questions = [question for question in QUESTIONS if question.task.name in model.tasks]
    finished = _answer_all(model, questions)
    for question, sequence in zip(questions, finished, strict=True):
        findings = model.parse_findings(sequence.prompt, sequence.output_ids)
        answer = Answer(sequence, _text(model, sequence, findings))
        comparison = verifiable.compare(question, answer)
        yield Line(
            question=question.text,
            answer=answer.text,
            is_right=question.is_right(answer.text, findings),
            reference=comparison.text,
            is_same=comparison.is_same,
        )


def _answer_all(model: Model, questions: Sequence[Question]) -> list[GenerationSequence]:
    """Answer all questions in one batch of the engine. Raises the engine's error if one fails."""
    engine = Engine(model, EngineLimits(max_batch_size=len(questions)))
    finished: list[GenerationSequence] = []
    for question in questions:
        deadline = time.time() + TIMEOUT_S
        request = VisionRequest("", "", question.task, deadline, SamplingParams(MAX_TOKENS))
        prompt = model.prepare(request, [question.picture()])
        finished += make_sequences(request, prompt, model.tokenizer)
    engine.scheduler.add(finished)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
    return finished


def _text(model: Model, sequence: GenerationSequence, findings: Findings) -> str:
    formatted = format_findings(findings)
    if formatted is not None:
        return formatted
    token_ids = [token for token in sequence.output_ids if token >= 0]
    return normalize_text(model.tokenizer.decode(token_ids))
