"""The choice of an output: its format, and the store that writes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from raylens.cli.box_formats import format_coco, format_csv, in_natural_order, with_names
from raylens.cli.datasets import CocoFile, CsvBoxes, DatasetStore, YoloFolder
from raylens.cli.errors import UsageError
from raylens.cli.record_file import RecordFile
from raylens.cli.records import CsvRecords, JsonRecords
from raylens.cli.results import Format, ResultStore, StandardOutput, check_stems
from raylens.cli.tasks import Task
from raylens.cli.text_files import TextFiles

STDOUT = Path("-")
"""The path that means the standard output."""
_BY_SUFFIX = {".csv": Format.CSV, ".json": Format.COCO}


def choose_format(task: Task, out: Path | None, requested: Format | None) -> Format:
    """Return the output format: the requested one, or the one that the suffix of ``out`` implies.

    Raises ``UsageError`` if ``task`` or ``out`` does not go with it.
    """
    file_format = requested or _implied_format(task, out)
    option = f"--format {file_format.value}"
    if file_format in (Format.COCO, Format.YOLO) and not task.is_detection:
        raise UsageError(f"{option}: needs boxes, which raylens detect finds")
    if file_format is Format.TXT and task.is_detection:
        raise UsageError(f"{option}: not supported for boxes; use --format yolo")
    if file_format is Format.TXT and out is not None:
        raise UsageError(
            f"--out: not supported with {option}, which writes each text beside its picture"
        )
    if file_format is not Format.TXT and out is None:
        is_folder = file_format is Format.YOLO
        place = "a folder" if is_folder else "one file, or to - for standard output"
        raise UsageError(f"--out: missing; {option} writes to {place}")
    if file_format is Format.YOLO and out == STDOUT:
        raise UsageError(f"--out -: not supported with {option}, which writes a folder")
    return file_format


def _implied_format(task: Task, out: Path | None) -> Format:
    suffix = out.suffix.lower() if out is not None else ""
    implied = _BY_SUFFIX.get(suffix, Format.JSONL)
    return Format.JSONL if implied is Format.COCO and not task.is_detection else implied


def open_store(
    task: Task,
    out: Path | None,
    file_format: Format,
    roots: Sequence[Path],
    pictures: Sequence[Path],
    retry: Sequence[str],
) -> ResultStore:
    """Open the store of a run's results.

    ``roots`` are the command's folders and files, and ``retry`` the pictures whose earlier failures
    are forgotten. Raises ``UsageError``.
    """
    if out is None:
        return TextFiles(_folder_of(roots), pictures)
    folder = _folder_of(roots)
    names = task.fields.get("objects", [])
    if out == STDOUT:
        return _standard_output(task, file_format, folder)
    if not task.is_detection or file_format is Format.JSONL:
        is_csv = file_format is Format.CSV
        records = (CsvRecords if is_csv else JsonRecords)(task.answer_key)
        return RecordFile(out, records, retry)
    if file_format is Format.CSV:
        return DatasetStore(CsvBoxes(out), names, None, retry)
    if file_format is Format.COCO:
        return DatasetStore(CocoFile(out, names), names, folder, retry)
    check_stems(pictures, "file of boxes", "rename one of them")
    return DatasetStore(YoloFolder(out, folder, names), names, folder, retry)


def _folder_of(roots: Sequence[Path]) -> Path:
    """Return the folder that has all of a command's folders and files."""
    folders = [root if root.is_dir() else root.parent for root in roots]
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


def _standard_output(task: Task, file_format: Format, folder: Path) -> StandardOutput:
    records = (CsvRecords if file_format is Format.CSV else JsonRecords)(task.answer_key)
    if file_format is Format.COCO:
        names = task.fields["objects"]
        return StandardOutput(
            records.encode,
            encode_all=lambda results: format_coco(
                in_natural_order(with_names(results, folder)), names
            ),
        )
    if task.is_detection and file_format is Format.CSV:
        return StandardOutput(
            records.encode, encode_all=lambda results: format_csv(in_natural_order(results))
        )
    return StandardOutput(records.encode, records.header)
