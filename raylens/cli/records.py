"""Records of results, as JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from raylens.cli.results import Result


class RecordFormat(ABC):
    """A format of records, one per result. A file of records begins with the header."""

    header = b""

    @abstractmethod
    def encode(self, result: Result) -> bytes: ...

    @abstractmethod
    def decode(self, record: bytes) -> Result:
        """Return a record's result. Raises ``ValueError`` if it is not a record."""

    def is_complete(self, record: bytes) -> bool:
        """Whether these lines are a record; if not, the next line belongs to it, too."""
        return record.endswith(b"\n")


class JsonRecords(RecordFormat):
    """One JSON object per line."""

    def __init__(self, answer_key: str) -> None:
        self._answer_key = answer_key

    def encode(self, result: Result) -> bytes:
        fields: dict[str, Any] = {"file": result.file}
        if result.error is None:
            fields |= {self._answer_key: result.answer, "model": result.model}
            if result.size:
                fields["width"], fields["height"] = result.size
        else:
            fields["error"] = result.error
        fields["job_id"] = result.job_id
        try:
            return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # the file's name is not valid UTF-8
            return json.dumps(fields).encode() + b"\n"

    def decode(self, record: bytes) -> Result:
        try:
            fields = json.loads(record)
            size = (fields["width"], fields["height"]) if "width" in fields else None
            error = fields.get("error")
            if error is None:
                answer = fields[self._answer_key]
            else:
                answer = None
                error = {"code": str(error["code"]), "message": str(error["message"])}
            file = os.fspath(fields["file"])
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError(str(problem)) from None
        return Result(file, answer, fields.get("model"), error, fields.get("job_id"), size)


class CsvRecords(RecordFormat):
    """Rows with the columns file, answer and error. A line end in quotes is part of the row."""

    def __init__(self, answer_key: str) -> None:
        self.columns = ["file", answer_key, "error"]
        self.header = encode_csv(self.columns)

    def encode(self, result: Result) -> bytes:
        return encode_csv([result.file, result.answer or "", result.problem])

    def decode(self, record: bytes) -> Result:
        text = io.StringIO(record.decode(errors="surrogateescape"), newline="")
        try:
            file, answer, problem = next(csv.reader(text))
        except csv.Error as cause:
            raise ValueError(str(cause)) from None
        error = {"code": "failed", "message": problem} if problem else None
        return Result(file, answer, error=error)

    def is_complete(self, record: bytes) -> bool:
        return super().is_complete(record) and record.count(b'"') % 2 == 0


def encode_csv(row: Sequence[Any]) -> bytes:
    """Return a row that ends with CRLF (RFC 4180). Cells that contain CR or LF are quoted."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)
    return text.getvalue().encode(errors="surrogateescape")
