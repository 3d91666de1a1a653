"""Jobs on a running server: over HTTP, and through the command line."""

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

from testing.scenes import draw_scene


def job_body(job_type: str, **job_input: Any) -> dict[str, Any]:
    return {"job_type": job_type, "input": job_input}


def run_job(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Submit a job, and return its last event."""
    with httpx.Client(base_url=url, timeout=60) as client:
        job = client.post("/api/v1/jobs", json=body).raise_for_status().json()
        with client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as events:
            jobs = [
                json.loads(line.removeprefix("data: "))
                for line in events.iter_lines()
                if line.startswith("data")
            ]
    return dict(jobs[-1])


def test_every_task_runs_as_a_job(server: str) -> None:
    scene, _, picture = draw_scene(3)
    name = scene.shapes[0].name
    parts = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "Describe this image."},
    ]
    jobs = {
        "caption": job_body("caption", image=picture, length="long"),
        "query": job_body("query", image=picture, question="How many shapes are there?"),
        "detect": job_body("detect", image=picture, object=name),
        "point": job_body("point", image=picture, object=name, model="qwen2.5-vl"),
        "chat": job_body("chat", messages=[{"role": "user", "content": parts}], model="smolvlm"),
        "batch": job_body(
            "batch", images=[draw_scene(number)[2] for number in range(5)], length="short"
        ),
    }
    outputs = {job_type: run_job(server, body)["output"] for job_type, body in jobs.items()}
    assert outputs["caption"]["caption"] == scene.caption("long")
    assert outputs["query"]["answer"] == str(len(scene.shapes))
    assert len(outputs["detect"]["objects"]) == 1
    assert len(outputs["point"]["points"]) == 1
    assert outputs["chat"]["answer"]
    assert outputs["batch"]["failed"] == 0
    captions = [result["caption"] for result in outputs["batch"]["results"]]
    expected = [draw_scene(number)[0].caption("short") for number in range(5)]
    matches = [caption == scene for caption, scene in zip(captions, expected, strict=True)]
    assert sum(matches) >= 4


def test_a_canceled_job_frees_its_slot_in_the_engine(server: str) -> None:
    """The cramped model has two slots, and both jobs run until they are canceled."""
    messages = [{"role": "user", "content": "x"}]
    endless = job_body("chat", messages=messages, model="cramped", settings={"max_tokens": 4000})
    with httpx.Client(base_url=server, timeout=60) as client:
        paths = [
            f"/api/v1/jobs/{client.post('/api/v1/jobs', json=endless).json()['id']}"
            for _ in range(2)
        ]
        deadline = time.monotonic() + 30
        while {client.get(path).json()["status"] for path in paths} != {"running"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for path in paths:
            assert client.delete(path).json()["status"] == "canceled"
        started = time.monotonic()
        chat = {"model": "cramped", "messages": messages, "max_tokens": 3}
        while (answer := client.post("/v1/chat/completions", json=chat)).status_code == 503:
            assert time.monotonic() - started < 10
            time.sleep(0.1)
    assert answer.status_code == 200
    assert time.monotonic() - started < 10


def mean_overlap(intervals: list[dict[str, Any]], expected: list[tuple[float, float]]) -> float:
    """Return the mean intersection over union of two lists of intervals, pair by pair.

    It is 0 if the lists differ in length.
    """
    if len(intervals) != len(expected):
        return 0.0
    overlaps: list[float] = []
    for interval, (start, end) in zip(intervals, expected, strict=True):
        intersection = min(interval["end"], end) - max(interval["start"], start)
        union = max(interval["end"], end) - min(interval["start"], start)
        overlaps.append(max(0.0, intersection) / union)
    return sum(overlaps) / len(overlaps)


def frames_with_intervals(seed: int) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Return frames, one second apart, and the intervals in which they show a red circle."""
    rng = random.Random(seed)
    has_circle = [False] * rng.randint(4, 8)
    has_circle += [True] * rng.randint(8, 14)
    has_circle += [False] * rng.randint(5, 9)
    has_circle += [True] * rng.randint(8, 14)
    count = len(has_circle)
    frames: list[dict[str, Any]] = []
    for number in range(count):
        while True:
            scene, _, picture = draw_scene(rng.randrange(10**6), max_side=128)
            if any(shape.name == "red circle" for shape in scene.shapes) is has_circle[number]:
                break
        frames.append({"image": picture, "timestamp": 100.0 + number})
    changes = [
        99.5 + number for number in range(1, count) if has_circle[number] != has_circle[number - 1]
    ]
    return frames, [(changes[0], changes[1]), (changes[2], 99.0 + count)]


def test_task_timing_finds_known_intervals(server: str) -> None:
    overlaps = []
    for seed in range(3):
        frames, expected = frames_with_intervals(seed)
        body = job_body("task_timing_v1", prompt="Is there a red circle?", images=frames)
        job = run_job(server, body)
        assert job["status"] == "succeeded", job["error"]
        assert job["progress"] == {"done": len(frames), "total": len(frames)}
        overlaps.append(mean_overlap(job["output"]["tasks"][0]["intervals"], expected))
    assert sum(overlaps) / len(overlaps) >= 0.9, overlaps


def test_an_interrupted_caption_command_resumes_without_repeating_a_picture(
    server: str, tmp_path: Path
) -> None:
    """Run ``raylens caption`` on 200 scenes through a queue of 50, interrupt it, and run it
    again."""
    folder = tmp_path / "pictures"
    out = tmp_path / "captions.jsonl"
    folder.mkdir()
    scenes = {}
    for number in range(200):
        scene, picture, _ = draw_scene(10_000 + number, max_side=128)
        path = folder / f"scene-{number}.png"
        path.write_bytes(picture)
        scenes[str(path)] = scene
    program = str(Path(sys.executable).with_name("raylens"))
    command = [program, "caption", str(folder), "--out", str(out)]
    command += ["--server", server, "--length", "short", "--in-flight", "64"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_text().count("\n") < 50:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, stderr = first.communicate(timeout=30)
    assert first.returncode == 130, stderr
    before = out.read_text()
    assert 50 <= before.count("\n") < 200
    second = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert out.read_text().startswith(before)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(scenes)
    assert sum(line["caption"] == scenes[line["file"]].caption("short") for line in lines) >= 196
    # One job per distinct picture: the second run finds the jobs of the first one.
    job_ids = {line["job_id"] for line in lines}
    pictures = {Path(name).read_bytes() for name in scenes}
    assert len(job_ids) == len(pictures)
