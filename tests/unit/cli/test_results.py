from __future__ import annotations

from pathlib import Path

import pytest

from raylens.cli.results import Format, Result, ResultFile


@pytest.mark.parametrize("file_format", [Format.JSONL, Format.CSV])
def test_an_incomplete_record_is_cut_off_and_no_complete_one_is_lost(
    tmp_path: Path, file_format: Format
) -> None:
    path = tmp_path / "captions"
    results = [
        Result("a, b.jpg", 'says "yes",\nand "no"\r\n', "m", job_id="1"),
        Result("\udcff.jpg", "a cat\u2028é", "m", job_id="2"),
        Result("c.jpg", error={"code": "x", "message": 'a "quoted"\nword'}),
    ]
    ends = []
    for result in results:
        with ResultFile(path, file_format) as store:
            store.write(result)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        with ResultFile(path, file_format) as store:
            for result, end in zip(results, ends, strict=True):
                expected = result.problem if size >= end else None
                assert store.earlier_problem(result.file) == expected
                if expected is None:
                    store.write(result)
        assert path.read_bytes() == content
