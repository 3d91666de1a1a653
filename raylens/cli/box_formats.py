"""Boxes in the formats of datasets.

Sources: https://cocodataset.org/#format-data and https://docs.ultralytics.com/datasets/detect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylens.cli.pictures import natural_key
from raylens.cli.records import encode_csv
from raylens.cli.results import Result

CSV_COLUMNS = (
    *("file", "label", "x_min", "y_min", "x_max", "y_max"),
    *("width", "height", "error"),
)


def with_names(results: Iterable[Result], root: Path) -> Iterator[Result]:
    """Yield the results with file names relative to ``root``."""
    for result in results:
        yield replace(result, file=relative_name(result.file, root))


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


def format_coco(results: Iterable[Result], names: Sequence[str]) -> str:
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
        images.append({"id": image_id, "file_name": result.file, "width": width, "height": height})
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


def relative_name(file: str, root: str | Path) -> str:
    """Return a path relative to ``root``, with forward slashes."""
    return Path(os.path.relpath(file, root)).as_posix()
