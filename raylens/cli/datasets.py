"""Boxes of many pictures as files that training tools read: COCO, YOLO and CSV."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from raylens.cli.box_formats import (
    format_coco,
    format_csv,
    format_yolo,
    in_natural_order,
    relative_name,
)
from raylens.cli.errors import UsageError
from raylens.cli.record_file import RecordFile
from raylens.cli.records import JsonRecords
from raylens.cli.results import Result, ResultStore, replace_file


class Dataset(ABC):
    """Files that hold the boxes of many pictures."""

    name: str
    """What messages call it."""
    records_path: Path
    """File of the records from which the dataset is written."""

    @abstractmethod
    def existing(self) -> Path | None:
        """Return one of the files that writing would replace, if there is one."""

    @abstractmethod
    def write(self, results: Sequence[Result]) -> None:
        """Write all files. Raises ``OSError``."""

    def remove(self, results: Iterable[Result]) -> None:
        """Remove what the dataset has of these pictures, so far as :meth:`write` does not replace
        it. Raises ``OSError``."""
        return

    def includes(self, result: Result) -> bool:
        """Whether the picture is part of the dataset."""
        return result.error is None and result.size is not None


class DatasetStore(ResultStore):
    """A file of records, from which a dataset is written at the end of each run.

    Files are named relative to the folder ``root``, so that another spelling of its path, or
    another working folder, means the same; None keeps the names as they are. ``names`` are the
    classes. Raises ``UsageError`` as :class:`RecordFile` does, and if the dataset would replace
    files that no earlier run has written.
    """

    def __init__(
        self, dataset: Dataset, names: Sequence[str], root: Path | None, retry: Iterable[str]
    ) -> None:
        existing = None if dataset.records_path.exists() else dataset.existing()
        if existing is not None:
            raise UsageError(f"{existing}: exists already; move it, or choose another --out")
        self._dataset = dataset
        self._names = names
        self._root = root
        self._records = RecordFile(
            dataset.records_path, JsonRecords("objects"), map(self._name_of, retry)
        )
        self.name = dataset.name
        self.settings_path = self._records.settings_path
        self.scope = {} if root is None else {"folder": os.path.realpath(root)}

    def __exit__(self, *exception: object) -> None:
        self._records.__exit__(*exception)

    @property
    def is_empty(self) -> bool:
        return self._records.is_empty

    def earlier_problem(self, file: str) -> str | None:
        return self._records.earlier_problem(self._name_of(file))

    def check(self) -> None:
        labels = {box["label"] for result in self._records.read() for box in result.answer or ()}
        if not labels <= set(self._names):
            unknown = ", ".join(sorted(labels - set(self._names)))
            raise UsageError(f"{self.name}: holds boxes of {unknown}; choose another --out")

    def begin(self, redo: bool) -> None:
        if redo:
            self._dataset.remove(self._records.read())
        self._records.begin(redo)

    def write(self, result: Result) -> None:
        self._records.write(replace(result, file=self._name_of(result.file)))

    def finish(self) -> str:
        results = in_natural_order(self._records.read())
        present = [result for result in results if os.path.lexists(self._path_of(result))]
        included = [result for result in present if self._dataset.includes(result)]
        kept = {result.file for result in included}
        self._dataset.remove(result for result in results if result.file not in kept)
        self._dataset.write(included)
        unsized = sum(result.error is None for result in present) - len(included)
        if unsized <= 0:
            return ""
        pictures = "1 picture" if unsized == 1 else f"{unsized} pictures"
        return f"left out {pictures} whose size can't be read here; HEIC needs pillow-heif"

    def _name_of(self, file: str) -> str:
        return file if self._root is None else relative_name(file, self._root)

    def _path_of(self, result: Result) -> str:
        return result.file if self._root is None else os.path.join(self._root, result.file)


class CsvBoxes(Dataset):
    """One row per box, and one with an empty label for each picture without any."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self.records_path = path.with_name(f"{path.name}.jsonl")

    def existing(self) -> Path | None:
        return self._path if self._path.exists() else None

    def includes(self, result: Result) -> bool:
        return True

    def write(self, results: Sequence[Result]) -> None:
        replace_file(self._path, format_csv(results))


class CocoFile(Dataset):
    """One JSON file. ``names`` are the categories."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.name = str(path)
        self._path = path
        self._names = names
        self.records_path = path.with_name(f"{path.name}.jsonl")

    def existing(self) -> Path | None:
        return self._path if self._path.exists() else None

    def write(self, results: Sequence[Result]) -> None:
        replace_file(self._path, format_coco(results, self._names))


class YoloFolder(Dataset):
    """A folder with ``data.yaml``, a text file of boxes per picture under ``labels``, and links to
    the pictures of ``root`` under ``images``, which training tools look for there.

    If the pictures lie in ``images`` already, there are no links. Raises ``UsageError`` if the
    folder can't be made, or if the links would lie among the pictures.
    """

    def __init__(self, folder: Path, root: Path, names: Sequence[str]) -> None:
        self.name = str(folder)
        self._folder = folder
        self._root = root
        self._images = folder / "images"
        self._is_in_place = _is_within(root, self._images)
        if _is_within(self._images, root) and not self._is_in_place:
            raise UsageError(f"--out: {folder} lies in {root}; choose a folder beside it")
        self._prefix = relative_name(os.path.realpath(root), os.path.realpath(self._images))
        self._names = names
        self.records_path = folder / "records.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: {error.strerror}") from None

    def existing(self) -> Path | None:
        files = (self._folder / "data.yaml", self._folder / "labels")
        return next((path for path in files if path.exists()), None)

    def remove(self, results: Iterable[Result]) -> None:
        for result in results:
            link = self._picture_path(result)
            self._label_path(link).unlink(missing_ok=True)
            if link.is_symlink() and not self._is_in_place:
                link.unlink()

    def write(self, results: Sequence[Result]) -> None:
        for result in results:
            link = self._picture_path(result)
            if not self._is_in_place:
                _place(os.path.join(self._root, result.file), link)
            label_path = self._label_path(link)
            label_path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(label_path, format_yolo(result.answer, self._names))
        description = {"train": "images", "val": "images", "names": list(self._names)}
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        replace_file(self._folder / "data.yaml", text)

    def _picture_path(self, result: Result) -> Path:
        """Return the picture's place in the dataset."""
        prefix = self._prefix if self._is_in_place else ""
        return self._images / prefix / result.file

    def _label_path(self, picture: Path) -> Path:
        """Return where training tools look for the boxes: they replace the last ``images``."""
        parts = list(picture.parts)
        last = len(parts) - 2 - parts[-2::-1].index("images")
        return Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")


def _place(file: str, link: Path) -> None:
    """Link to a picture, or copy it if there can be no links.

    A link that leads elsewhere is replaced, and any other file is kept.
    """
    picture = os.path.realpath(file)
    if link.is_symlink() and os.path.realpath(link) != picture:
        link.unlink()
    if os.path.lexists(link):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(picture, os.path.realpath(link.parent)))
    except OSError:
        shutil.copyfile(picture, link)


def _is_within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
