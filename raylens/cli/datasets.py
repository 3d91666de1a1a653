"""Boxes as files that training tools read: COCO, YOLO and CSV.

Formats: https://cocodataset.org/#format-data and https://docs.ultralytics.com/datasets/detect.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raylens.cli.errors import UsageError
from raylens.cli.pictures import natural_key
from raylens.cli.record_file import RecordFile
from raylens.cli.records import JsonRecords, encode_csv
from raylens.cli.results import Result, ResultStore, replace_file

CSV_COLUMNS = (
    *("file", "label", "x_min", "y_min", "x_max", "y_max"),
    *("width", "height", "error"),
)


class Dataset(ABC):
    """Files that hold the boxes of many pictures."""

    records_path: Path
    """File of the records from which the dataset is written."""
    scope: Mapping[str, str] = {}
    """As :attr:`ResultStore.scope`."""

    @abstractmethod
    def existing(self) -> Path | None:
        """Return one of the files that writing would replace, if there is one."""

    @abstractmethod
    def write(self, results: Sequence[Result]) -> None:
        """Write all files. Raises ``OSError``."""

    def remove(self, results: Iterable[Result]) -> None:
        """Remove what the next :meth:`write` would not replace. Raises ``OSError``."""
        return

    def skips(self, result: Result) -> bool:
        """Whether the dataset leaves the picture out."""
        return result.error is not None or result.size is None


class DatasetStore(ResultStore):
    """A file of records, from which a dataset is written at the end of each run.

    Raises ``UsageError`` as :class:`RecordFile` does, and if the dataset would replace files that
    no earlier run has written.
    """

    def __init__(self, dataset: Dataset, retry: Sequence[str]) -> None:
        existing = None if dataset.records_path.exists() else dataset.existing()
        if existing is not None:
            raise UsageError(f"{existing}: exists already; choose another --out")
        self._dataset = dataset
        try:
            dataset.records_path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from None
        self._records = RecordFile(dataset.records_path, JsonRecords("objects"), retry)
        self.settings_paths = self._records.settings_paths
        self.scope = dataset.scope

    def __exit__(self, *exception: object) -> None:
        self._records.__exit__(*exception)

    @property
    def is_empty(self) -> bool:
        return self._records.is_empty

    def earlier_problem(self, file: str) -> str | None:
        return self._records.earlier_problem(file)

    def clear(self) -> None:
        self._dataset.remove(self._records.read())
        self._records.clear()

    def write(self, result: Result) -> None:
        self._records.write(result)

    def finish(self) -> str:
        results = in_natural_order(self._records.read())
        self._dataset.write(results)
        unsized = sum(result.error is None and self._dataset.skips(result) for result in results)
        if not unsized:
            return ""
        return f"left out {unsized} pictures whose size can't be read here; HEIC needs pillow-heif"


class CsvBoxes(Dataset):
    """One row per box, and one with an empty label for each picture without any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records_path = path.with_name(f"{path.name}.jsonl")

    def existing(self) -> Path | None:
        return self._path if self._path.exists() else None

    def skips(self, result: Result) -> bool:
        return False

    def write(self, results: Sequence[Result]) -> None:
        replace_file(self._path, format_csv(results))


class CocoFile(Dataset):
    """One JSON file. File names are relative to ``root``, and ``names`` are the categories."""

    def __init__(self, path: Path, root: Path, names: Sequence[str]) -> None:
        self._path = path
        self._root = root
        self._names = names
        self.records_path = path.with_name(f"{path.name}.jsonl")
        self.scope = {"folder": os.path.realpath(root)}

    def existing(self) -> Path | None:
        return self._path if self._path.exists() else None

    def write(self, results: Sequence[Result]) -> None:
        replace_file(self._path, format_coco(results, self._root, self._names))


class YoloFolder(Dataset):
    """A folder with ``data.yaml``, a text file of boxes per picture under ``labels``, and links to
    the pictures under ``images``, which training tools look for there.

    If the pictures lie in ``images`` already, there are no links. Raises ``UsageError`` if the
    links would lie among the pictures.
    """

    def __init__(self, folder: Path, root: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._images = folder / "images"
        self._root = self._images if _is_within(root, self._images) else root
        if _is_within(self._images, root) and not _is_within(root, self._images):
            raise UsageError(f"--out: {folder} lies in {root}; choose a folder beside it")
        self._names = names
        self.records_path = folder / "records.jsonl"
        self.scope = {"folder": os.path.realpath(root)}

    def existing(self) -> Path | None:
        files = (self._folder / "data.yaml", self._folder / "labels")
        return next((path for path in files if path.exists()), None)

    def remove(self, results: Iterable[Result]) -> None:
        for result in results:
            self._label_path(result).unlink(missing_ok=True)

    def write(self, results: Sequence[Result]) -> None:
        for result in results:
            path = self._label_path(result)
            if not self.skips(result):
                self._link(result.file)
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, format_yolo(result.answer, self._names))
        description = {"train": "images", "val": "images", "names": list(self._names)}
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        replace_file(self._folder / "data.yaml", text)

    def _label_path(self, result: Result) -> Path:
        name = relative_name(result.file, self._root)
        return (self._folder / "labels" / name).with_suffix(".txt")

    def _link(self, file: str) -> None:
        """Make a link to the picture, if none is there."""
        link = self._images / relative_name(file, self._root)
        picture = os.path.realpath(file)
        if not os.path.lexists(link) and os.path.exists(picture):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(picture, os.path.realpath(link.parent)))


def _is_within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def in_natural_order(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: natural_key(Path(result.file)))


def format_csv(results: Iterable[Result]) -> str:
    rows = [list(CSV_COLUMNS)]
    for result in results:
        rows += _csv_rows(result)
    return b"".join(map(encode_csv, rows)).decode(errors="surrogateescape")


def _csv_rows(result: Result) -> Iterator[list[Any]]:
    width, height = result.size or ("", "")
    for box in result.answer or [{}]:
        values = [box.get(name, "") for name in CSV_COLUMNS[1:6]]
        yield [result.file, *values, width, height, result.problem]


def format_coco(results: Iterable[Result], root: Path, names: Sequence[str]) -> str:
    """Return COCO's JSON of the pictures that have boxes, or none, and a size.

    Category ids begin with 1, in the order of ``names``.
    """
    category_ids = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in results:
        if result.error is not None or result.size is None:
            continue
        width, height = result.size
        image_id = len(images) + 1
        name = relative_name(result.file, root)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for box in result.answer:
            x, y = box["x_min"] * width, box["y_min"] * height
            box_width = box["x_max"] * width - x
            box_height = box["y_max"] * height - y
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[box["label"]],
                    "bbox": [round(value, 2) for value in (x, y, box_width, box_height)],
                    "area": round(box_width * box_height, 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content) + "\n"


def format_yolo(boxes: Iterable[dict[str, Any]], names: Sequence[str]) -> str:
    """Return a line ``class x_center y_center width height`` per box, in fractions."""
    lines = []
    for box in boxes:
        width = box["x_max"] - box["x_min"]
        height = box["y_max"] - box["y_min"]
        values = (box["x_min"] + width / 2, box["y_min"] + height / 2, width, height)
        lines.append(f"{names.index(box['label'])} " + " ".join(f"{v:.6f}" for v in values) + "\n")
    return "".join(lines)


def relative_name(file: str, root: Path) -> str:
    """Return a picture's path relative to ``root``, with forward slashes."""
    return Path(os.path.relpath(file, root)).as_posix()
