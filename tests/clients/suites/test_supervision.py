"""Boxes are right in supervision's own terms, also of pictures that EXIF rotates."""

import base64
import json
import os
import subprocess
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import supervision as sv
from PIL import Image, ImageOps
from scene import BASE_URL, SERVER

PICTURES = Path(os.environ["RAYLENS_PICTURES"])
TRUTH = json.loads((PICTURES / "truth.json").read_text())
"""By file name, the boxes (x_min, y_min, x_max, y_max) of each kind of shape, in fractions."""
KINDS = ["triangle", "circle", "square"]
MIN_IOU = 0.6
MIN_F1 = 0.95
QWENS_MIN_F1 = 0.9
"""The pocket Qwen2.5-VL mixes up shapes of the same kind now and then."""
QWENS_PROMPT = "Outline the position of each {} and output all the bbox coordinates in JSON format."


def size_of(name: str) -> tuple[int, int]:
    with Image.open(PICTURES / name) as picture:
        return ImageOps.exif_transpose(picture).size


class Score:
    """F1 of boxes in pixels of the upright pictures."""

    def __init__(self) -> None:
        self.matches = self.found = self.expected = 0

    def add(self, name: str, kind: str, boxes: np.ndarray) -> None:
        expected = np.array(TRUTH[name][kind]).reshape(-1, 4) * (size_of(name) * 2)
        self.found += len(boxes)
        self.expected += len(expected)
        if len(boxes) and len(expected):
            overlaps = sv.box_iou_batch(expected, boxes)
            self.matches += int((overlaps.max(axis=1) >= MIN_IOU).sum())

    @property
    def f1(self) -> float:
        return 2 * self.matches / (self.found + self.expected)


def test_moondreams_form() -> None:
    score = Score()
    for name in TRUTH:
        for kind in KINDS:
            with (PICTURES / name).open("rb") as file:
                reply = httpx.post(
                    f"{SERVER}/v1/detect", files={"file": file}, data={"object": kind}, timeout=60
                ).json()
            found = sv.Detections.from_vlm(
                vlm=sv.VLM.MOONDREAM, result=reply, resolution_wh=size_of(name)
            )
            score.add(name, kind, found.xyxy)
    assert score.f1 >= MIN_F1


def test_qwens_form() -> None:
    client = openai.OpenAI(base_url=BASE_URL, api_key="none")
    score = Score()
    for name in TRUTH:
        data = (PICTURES / name).read_bytes()
        reply = httpx.post(
            f"{SERVER}/v1/preprocess",
            files={"file": data},
            data={"model": "qwen2.5-vl"},
            timeout=60,
        ).json()
        sizes = reply["geometry"]
        assert tuple(sizes["original"]) == size_of(name)
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for kind in KINDS:
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": QWENS_PROMPT.format(kind)},
            ]
            answer = client.chat.completions.create(
                model="qwen2.5-vl", messages=[{"role": "user", "content": content}]
            )
            found = sv.Detections.from_vlm(
                vlm=sv.VLM.QWEN_2_5_VL,
                result=answer.choices[0].message.content,
                input_wh=tuple(sizes["model"]),
                resolution_wh=tuple(sizes["original"]),
            )
            score.add(name, kind, found.xyxy)
    assert score.f1 >= QWENS_MIN_F1


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with upright pictures: supervision takes the size of a picture as stored."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in TRUTH:
        with Image.open(PICTURES / name) as picture:
            ImageOps.exif_transpose(picture).convert("RGB").save(folder / f"{Path(name).stem}.png")
    return folder


def detect(pictures: Path, out: Path, file_format: str) -> None:
    command = [os.environ["RAYLENS_COMMAND"], "detect", str(pictures), *KINDS]
    options = ["--format", file_format, "--out", str(out), "--server", SERVER]
    subprocess.run([*command, *options], check=True)


def check_dataset(dataset: sv.DetectionDataset) -> None:
    assert dataset.classes == KINDS
    assert len(dataset) == len(TRUTH)
    names = {Path(name).stem: name for name in TRUTH}
    score = Score()
    for path, _, found in dataset:
        for number, kind in enumerate(KINDS):
            boxes = found.xyxy[found.class_id == number] if len(found) else np.empty((0, 4))
            score.add(names[Path(path).stem], kind, boxes)
    assert score.f1 >= MIN_F1


def test_coco_files_load(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "annotations.json"
    detect(pictures, out, "coco")
    check_dataset(sv.DetectionDataset.from_coco(str(pictures), str(out)))


def test_yolo_folders_load(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    detect(pictures, out, "yolo")
    check_dataset(
        sv.DetectionDataset.from_yolo(
            str(out / "images"), str(out / "labels"), str(out / "data.yaml")
        )
    )
