from __future__ import annotations

from pathlib import Path

import pytest

from raylens.cli.record_file import RecordFile
from raylens.cli.records import CsvRecords, JsonRecords, RecordFormat
from raylens.cli.results import Result


@pytest.mark.parametrize("records", [JsonRecords("caption"), CsvRecords("caption")])
def test_an_incomplete_record_is_cut_off_and_no_complete_one_is_lost(
    tmp_path: Path, records: RecordFormat
) -> None:
    path = tmp_path / "captions"
    results = [
        Result("a, b.jpg", 'says "yes",\nand "no"\r\n', "m", job_id="1"),
        Result("\udcff.jpg", "a cat\u2028é", "m", job_id="2"),
        Result("c.jpg", error={"code": "x", "message": 'a "quoted"\nword'}),
    ]
    ends = []
    for result in results:
        with RecordFile(path, records) as store:
            store.write(result)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        with RecordFile(path, records) as store:
            for result, end in zip(results, ends, strict=True):
                expected = result.problem if size >= end else None
                assert store.earlier_problem(result.file) == expected
                if expected is None:
                    store.write(result)
        assert path.read_bytes() == content
