from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from preprocessing.header import upright_size
from raylens.cli.main import app
from tests.unit.cli.fake_server import BLURRED, FakeServer, write_pictures

CAT = {"x_min": 0.25, "y_min": 0.5, "x_max": 0.75, "y_max": 1.0, "label": "cat"}
DOG = {"x_min": 0.0, "y_min": 0.0, "x_max": 0.5, "y_max": 0.25, "label": "dog"}
SIZE = (40, 20)
ROTATED = 6
"""EXIF orientation of a picture that is stored on its side."""


def run(server: FakeServer, *arguments: object) -> CommandResult:
    return CliRunner().invoke(app, ["detect", *map(str, arguments)], obj=server.client_arguments)


def save_picture(path: Path, orientation: int = 1, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", SIZE, (color, color, color)).save(path, exif=exif)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 2.png with a cat and a dog, 10.jpg, rotated, with a dog, and more/3.png without."""
    folder = tmp_path / "in"
    save_picture(folder / "2.png")
    save_picture(folder / "10.jpg", ROTATED)
    save_picture(folder / "more" / "3.png", color=9)
    return folder


@pytest.fixture
def server(folder: Path) -> FakeServer:
    boxes = {"2.png": [CAT, DOG], "10.jpg": [DOG], "more/3.png": []}
    by_content = {
        (folder / name).read_bytes().decode("latin-1"): answer for name, answer in boxes.items()
    }
    return FakeServer(by_content.__getitem__)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_each_picture_gets_a_record_with_its_upright_size(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "boxes.jsonl"
    result = run(server, folder, "cat", " dog ", "--out", out, "--max-objects", 7)
    assert result.exit_code == 0
    assert server.inputs == [{"objects": ["cat", "dog"], "max_objects": 7}] * 3
    records = [json.loads(line) for line in out.read_text().splitlines()]
    found = {
        record["file"]: (record["objects"], record["width"], record["height"]) for record in records
    }
    assert found == {
        str(folder / "2.png"): ([CAT, DOG], 40, 20),
        str(folder / "10.jpg"): ([DOG], 20, 40),
        str(folder / "more/3.png"): ([], 40, 20),
    }
    assert "3 pictures: 3 searched, 0 failed" in result.stderr


COCO = {
    "images": [
        {"id": 1, "file_name": "2.png", "width": 40, "height": 20},
        {"id": 2, "file_name": "10.jpg", "width": 20, "height": 40},
        {"id": 3, "file_name": "more/3.png", "width": 40, "height": 20},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 2,
            "bbox": [10, 10, 20, 10],
            "area": 200,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "bbox": [0, 0, 20, 5],
            "area": 100,
            "iscrowd": 0,
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 1,
            "bbox": [0, 0, 10, 10],
            "area": 100,
            "iscrowd": 0,
        },
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
}


def test_coco_has_pixels_of_the_upright_picture_and_the_classes_in_the_given_order(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "annotations.json"
    assert run(server, folder, "dog", "cat", "--out", out).exit_code == 0
    assert read_json(out) == COCO
    piped = run(server, folder, "dog", "cat", "--out", "-", "--format", "coco")
    assert json.loads(piped.stdout_bytes) == COCO


def test_yolo_is_a_folder_that_training_tools_read(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sets" / "dataset"
    for _ in range(2):
        assert run(server, folder, "dog", "cat", "--format", "yolo", "--out", out).exit_code == 0
    assert len(server.submissions) == 3
    description = yaml.safe_load((out / "data.yaml").read_text())
    assert description == {"train": "images", "val": "images", "names": ["dog", "cat"]}
    labels = {
        str(path.relative_to(out / "labels")): path.read_text() for path in out.rglob("*.txt")
    }
    assert labels == {
        "2.txt": "1 0.500000 0.750000 0.500000 0.500000\n0 0.250000 0.125000 0.500000 0.250000\n",
        "10.txt": "0 0.250000 0.125000 0.500000 0.250000\n",
        "more/3.txt": "",
    }
    for name in ("2.png", "10.jpg", "more/3.png"):
        assert (out / "images" / name).read_bytes() == (folder / name).read_bytes()
    assert not os.path.isabs(os.readlink(out / "images" / "2.png"))


def test_pictures_that_lie_in_the_dataset_already_are_not_linked(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "dataset" / "images" / "train"
    images.parent.mkdir(parents=True)
    folder.rename(images)
    out = images.parent.parent
    assert run(server, images, "dog", "cat", "--format", "yolo", "--out", out).exit_code == 0
    assert (out / "labels/train/more/3.txt").read_text() == ""
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_csv_has_a_row_per_box_and_one_for_a_picture_without_any(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "boxes.csv"
    (folder / "broken.jpg").symlink_to("nowhere")
    assert run(server, folder, "cat", "dog", "--out", out).exit_code == 1
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "label", "x_min", "y_min", "x_max", "y_max", "width", "height", "error"],
        [str(folder / "2.png"), "cat", "0.25", "0.5", "0.75", "1.0", "40", "20", ""],
        [str(folder / "2.png"), "dog", "0.0", "0.0", "0.5", "0.25", "40", "20", ""],
        [str(folder / "10.jpg"), "dog", "0.0", "0.0", "0.5", "0.25", "20", "40", ""],
        [str(folder / "broken.jpg"), "", "", "", "", "", "", "", "No such file or directory"],
        [str(folder / "more/3.png"), "", "", "", "", "", "40", "20", ""],
    ]


@pytest.mark.parametrize("file_format", ["coco", "yolo"])
def test_failed_pictures_are_left_out_until_they_succeed(
    server: FakeServer, folder: Path, tmp_path: Path, file_format: str
) -> None:
    find = server.answer
    failing = (folder / "10.jpg").read_bytes().decode("latin-1")
    server.answer = lambda picture: BLURRED if picture == failing else find(picture)
    arguments = (folder, "dog", "cat", "--format", file_format, "--out", tmp_path / "out")
    for retry in ([], ["--retry-failed"]):
        result = run(server, *arguments, *retry)
        names = names_in_dataset(tmp_path / "out")
        assert (result.exit_code, names) == (
            (0, {"2", "10", "more/3"}) if retry else (1, {"2", "more/3"})
        )
        server.answer = find


def names_in_dataset(out: Path) -> set[str]:
    """Return the pictures of a COCO file or a YOLO folder, without their suffixes."""
    if out.is_file():
        names = [Path(image["file_name"]) for image in read_json(out)["images"]]
    else:
        names = [path.relative_to(out / "labels") for path in (out / "labels").rglob("*.txt")]
    return {str(name.with_suffix("")) for name in names}


def test_a_dataset_that_begins_again_with_other_classes_keeps_nothing_old(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    arguments = ("--format", "yolo", "--out", tmp_path / "out")
    assert run(server, folder, "dog", "cat", *arguments).exit_code == 0
    result = run(server, folder, "cat", "dog", *arguments)
    assert result.exit_code == 2
    assert 'objects ["dog", "cat"], and now it is ["cat", "dog"]' in result.stderr
    server.answer = lambda picture: BLURRED
    assert run(server, folder, "cat", "dog", *arguments, "--redo").exit_code == 1
    assert names_in_dataset(tmp_path / "out") == set()


def test_files_that_no_earlier_run_has_written_are_not_replaced(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "annotations.json"
    path.write_text("{}")
    (tmp_path / "dataset" / "labels").mkdir(parents=True)
    for out, file_format in ((path, "coco"), (path, "csv"), (tmp_path / "dataset", "yolo")):
        result = run(server, folder, "cat", "--out", out, "--format", file_format)
        assert result.exit_code == 2
        assert "exists already; move it, or choose another --out" in result.stderr
    assert path.read_text() == "{}"


def test_a_picture_of_unknown_size_is_in_the_records_only(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.heic")
    server = FakeServer(lambda picture: [CAT])
    out = tmp_path / "boxes.json"
    result = run(server, folder, "cat", "--out", out)
    assert result.exit_code == 0
    assert "left out 1 picture whose size can't be read here" in result.stderr
    assert read_json(out)["images"] == []
    assert read_json(tmp_path / "boxes.json.jsonl")["objects"] == [CAT]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cat", "cat", "--out", "x"], "a name is given twice"),
        (["cat", " ", "--out", "x"], "a name is empty"),
        (["cat"], "--out: missing"),
        (["cat", "--format", "yolo"], "--out: missing; --format yolo writes to a folder"),
        (["cat", "--format", "yolo", "--out", "-"], "--out -: not supported with --format yolo"),
        (["cat", "--format", "yolo", "--out", "in"], "--out: in lies in in"),
        (["cat", "--format", "txt", "--out", "x"], "txt"),
        (["cat", "--out", "missing/x.jsonl"], "missing/x.jsonl: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_usage_is_reported_before_anything_is_sent(
    server: FakeServer,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(server, folder.name, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert server.submissions == []
    assert not (tmp_path / "x").exists()


def test_pictures_that_would_share_a_file_of_boxes_are_refused(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    save_picture(folder / "2.jpg")
    result = run(server, folder, "cat", "--format", "yolo", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "would share one file of boxes" in result.stderr


def test_another_spelling_of_the_path_means_the_same_pictures(
    server: FakeServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "annotations.json"
    assert run(server, folder, "dog", "cat", "--out", out).exit_code == 0
    monkeypatch.chdir(folder.parent)
    assert run(server, folder.name, "dog", "cat", "--out", out).exit_code == 0
    monkeypatch.chdir(folder / "more")
    assert run(server, "..", "dog", "cat", "--out", out).exit_code == 0
    assert len(server.submissions) == 3
    assert read_json(out) == COCO


@pytest.mark.parametrize("file_format", ["coco", "yolo"])
def test_a_picture_that_is_gone_leaves_the_dataset(
    server: FakeServer, folder: Path, tmp_path: Path, file_format: str
) -> None:
    out = tmp_path / "out"
    arguments = (folder, "dog", "cat", "--format", file_format, "--out", out)
    assert run(server, *arguments).exit_code == 0
    (folder / "2.png").rename(folder / "renamed.png")
    (folder / "more" / "3.png").rename(folder / "more" / "3.bmp")
    assert run(server, *arguments).exit_code == 0
    assert names_in_dataset(out) == {"10", "renamed", "more/3"}
    if file_format == "yolo":
        links = {path.name for path in (out / "images").rglob("*.*")}
        assert links == {"10.jpg", "renamed.png", "3.bmp"}


def test_a_dataset_of_another_folder_keeps_nothing_of_the_first(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    arguments = ("dog", "cat", "--format", "yolo", "--out", tmp_path / "out")
    assert run(server, folder, *arguments).exit_code == 0
    other = tmp_path / "other" / "deep"
    save_picture(other / "3.png", color=9)
    by_hand = [tmp_path / "2.txt", tmp_path / "other" / "2.txt", folder / "2.txt"]
    for path in by_hand:
        path.write_text("by hand")
    refused = run(server, other, *arguments)
    assert refused.exit_code == 2
    assert "holds results with folder" in refused.stderr
    assert run(server, other, *arguments, "--redo").exit_code == 0
    assert names_in_dataset(tmp_path / "out") == {"3"}
    assert [path.name for path in (tmp_path / "out" / "images").rglob("*.*")] == ["3.png"]
    assert all(path.read_text() == "by hand" for path in by_hand)


def test_a_link_of_the_same_name_leads_to_the_new_picture(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    arguments = ("dog", "cat", "--format", "yolo", "--out", tmp_path / "out")
    assert run(server, folder, *arguments).exit_code == 0
    other = tmp_path / "other"
    save_picture(other / "2.png", color=9)
    assert run(server, other, *arguments, "--redo").exit_code == 0
    assert (tmp_path / "out/images/2.png").read_bytes() == (other / "2.png").read_bytes()
    assert (tmp_path / "out/labels/2.txt").read_text() == ""


def test_labels_lie_where_training_tools_look_for_them(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    save_picture(folder / "train" / "images" / "4.png", color=9)
    out = tmp_path / "images" / "out"
    assert run(server, folder, "dog", "cat", "--format", "yolo", "--out", out).exit_code == 0
    pictures = [*(out / "images").rglob("*.png"), *(out / "images").rglob("*.jpg")]
    assert len(pictures) == 4
    for picture in pictures:
        # What Ultralytics does: https://github.com/ultralytics/ultralytics, img2label_paths
        before, after = str(picture).rsplit("/images/", 1)
        assert Path(f"{before}/labels/{after}").with_suffix(".txt").exists()


def test_a_link_to_the_pictures_of_the_dataset_is_the_same_folder(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "dataset" / "images"
    images.parent.mkdir()
    folder.rename(images)
    link = tmp_path / "link"
    link.symlink_to(images)
    out = images.parent
    assert run(server, link, "dog", "cat", "--format", "yolo", "--out", out).exit_code == 0
    assert names_in_dataset(out) == {"2", "10", "more/3"}
    assert not list(images.rglob("*.txt"))


def test_without_links_the_pictures_are_copied(
    server: FakeServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    out = tmp_path / "out"
    assert run(server, folder, "dog", "cat", "--format", "yolo", "--out", out).exit_code == 0
    assert (out / "images/2.png").read_bytes() == (folder / "2.png").read_bytes()


def test_records_without_settings_must_have_the_same_names(
    server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "annotations.json"
    assert run(server, folder, "dog", "cat", "--out", out).exit_code == 0
    (tmp_path / ".annotations.json.jsonl.settings").unlink()
    result = run(server, folder, "dog", "--out", out)
    assert result.exit_code == 2
    assert "holds boxes of cat; choose another --out" in result.stderr
    server.answer = lambda picture: [DOG]
    assert run(server, folder, "dog", "--out", out, "--redo").exit_code == 0


def test_names_of_pictures_are_no_names_of_objects(
    server: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = run(server, "2.png", "10.jpg", "cat", "--out", "-")
    assert result.exit_code == 2
    assert "10.jpg is a picture; give one folder or picture" in " ".join(result.stderr.split())


def test_boxes_of_a_name_that_is_not_utf_8_are_written(server: FakeServer, folder: Path) -> None:
    name = os.fsdecode(os.fsencode(folder) + b"/\xff.png")
    os.rename(folder / "2.png", name)
    for file_format in ("csv", "coco", "jsonl"):
        result = run(server, folder, "dog", "cat", "--out", "-", "--format", file_format)
        assert result.exit_code == 0
        assert result.stdout_bytes


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_size_is_that_of_the_upright_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rotated.{suffix}"
    save_picture(path, ROTATED)
    assert upright_size(path.read_bytes()) == SIZE[::-1]
