"""Jobs in the whole graph: over HTTP, and through the command line."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from testing.scenes import drawn


def job_of(kind: str, **given: Any) -> dict[str, Any]:
    return {"job_type": kind, "input": given}


def ended(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A job that was submitted, at its end, as its events tell it."""
    with httpx.Client(base_url=url, timeout=60) as client:
        job = client.post("/api/v1/jobs", json=body).raise_for_status().json()
        with client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as events:
            told = [
                json.loads(line.removeprefix("data: "))
                for line in events.iter_lines()
                if line.startswith("data")
            ]
    return dict(told[-1])


def test_every_task_runs_as_a_job(server: str) -> None:
    scene, _, picture = drawn(3)
    name = scene.shapes[0].name
    parts = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "Describe this image."},
    ]
    jobs = {
        "caption": job_of("caption", image=picture, length="long"),
        "query": job_of("query", image=picture, question="How many shapes are there?"),
        "detect": job_of("detect", image=picture, object=name),
        "point": job_of("point", image=picture, object=name, model="qwen2.5-vl"),
        "chat": job_of("chat", messages=[{"role": "user", "content": parts}], model="smolvlm"),
        "batch": job_of("batch", images=[drawn(number)[2] for number in range(5)], length="short"),
    }
    outputs = {kind: ended(server, body)["output"] for kind, body in jobs.items()}
    assert outputs["caption"]["caption"] == scene.caption("long")
    assert outputs["query"]["answer"] == str(len(scene.shapes))
    assert len(outputs["detect"]["objects"]) == 1
    assert len(outputs["point"]["points"]) == 1
    assert outputs["chat"]["answer"]
    assert outputs["batch"]["failed"] == 0
    captions = [result["caption"] for result in outputs["batch"]["results"]]
    assert (
        sum(said == drawn(number)[0].caption("short") for number, said in enumerate(captions)) >= 4
    )


def test_a_canceled_jobs_place_in_the_engine_is_free(server: str) -> None:
    """The model has two places, and answers that go on until their length ends them."""
    words = [{"role": "user", "content": "x"}]
    endless = job_of("chat", messages=words, model="cramped", settings={"max_tokens": 4000})
    with httpx.Client(base_url=server, timeout=60) as client:
        ids = [client.post("/api/v1/jobs", json=endless).json()["id"] for _ in range(2)]
        until = time.monotonic() + 30
        while {client.get(f"/api/v1/jobs/{each}").json()["status"] for each in ids} != {"running"}:
            assert time.monotonic() < until
            time.sleep(0.05)
        for each in ids:
            assert client.delete(f"/api/v1/jobs/{each}").json()["status"] == "canceled"
        started = time.monotonic()
        chat = {"model": "cramped", "messages": words, "max_tokens": 3}
        while (answer := client.post("/v1/chat/completions", json=chat)).status_code == 503:
            assert time.monotonic() - started < 10
            time.sleep(0.1)
    assert answer.status_code == 200
    assert time.monotonic() - started < 10


def overlap(found: list[dict[str, Any]], known: list[tuple[float, float]]) -> float:
    """Mean intersection over union of intervals that should be the same, in order."""
    if len(found) != len(known):
        return 0.0
    shares: list[float] = []
    for interval, (start, end) in zip(found, known, strict=True):
        both = min(interval["end"], end) - max(interval["start"], start)
        shares.append(max(0.0, both) / (max(interval["end"], end) - min(interval["start"], start)))
    return sum(shares) / len(shares)


def sequence(seed: int) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Frames of scenes with and without a red circle, a second apart, and when there is one."""
    rng = random.Random(seed)
    there = [False] * rng.randint(4, 8) + [True] * rng.randint(8, 14) + [False] * rng.randint(5, 9)
    there += [True] * rng.randint(8, 14)
    frames: list[dict[str, Any]] = []
    for number, wanted in enumerate(there):
        while True:
            scene, _, picture = drawn(rng.randrange(10**6), max_side=128)
            if any(shape.name == "red circle" for shape in scene.shapes) is wanted:
                break
        frames.append({"image": picture, "timestamp": 100.0 + number})
    turns = [99.5 + number for number in range(1, len(there)) if there[number] != there[number - 1]]
    return frames, [(turns[0], turns[1]), (turns[2], 99.0 + len(there))]


def test_task_timing_finds_known_intervals(server: str) -> None:
    shares = []
    for seed in range(3):
        frames, known = sequence(seed)
        done = ended(
            server, job_of("task_timing_v1", prompt="Is there a red circle?", images=frames)
        )
        assert done["status"] == "succeeded", done["error"]
        assert done["progress"] == {"done": len(frames), "total": len(frames)}
        shares.append(overlap(done["output"]["tasks"][0]["intervals"], known))
    assert sum(shares) / len(shares) >= 0.9, shares


def test_a_folder_is_captioned_in_two_goes_and_nothing_twice(server: str, tmp_path: Path) -> None:
    """``raylens caption`` on 200 scenes, through a queue of 50, interrupted and run again."""
    folder, out = tmp_path / "pictures", tmp_path / "captions.jsonl"
    folder.mkdir()
    scenes = {}
    for number in range(200):
        scene, picture, _ = drawn(10_000 + number, max_side=128)
        path = folder / f"scene-{number}.png"
        path.write_bytes(picture)
        scenes[str(path)] = scene
    command = [
        str(Path(sys.executable).with_name("raylens")),
        "caption",
        str(folder),
        "--out",
        str(out),
    ]
    command += ["--server", server, "--length", "short", "--in-flight", "64"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not out.exists() or out.read_text().count("\n") < 50:
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 130, said
    before = out.read_text()
    assert 50 <= before.count("\n") < 200
    second = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert out.read_text().startswith(before)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(scenes)
    assert sum(line["caption"] == scenes[line["file"]].caption("short") for line in lines) >= 196
    # Each picture was one job: what was submitted before the interruption was found again.
    assert len({line["job_id"] for line in lines}) == len(
        {Path(name).read_bytes() for name in scenes}
    )
