from __future__ import annotations

import pickle

import pytest

from raylens.core import errors


@pytest.mark.parametrize("name", [name for name in dir(errors) if name[0].isupper()])
def test_an_error_keeps_its_data_between_processes(name) -> None:
    kind = getattr(errors, name)
    error = pickle.loads(pickle.dumps(kind("too many", "n", 8, 9, 1.5)))
    assert (error.message, error.field, error.limit, error.actual, error.retry_after) == (
        "too many",
        "n",
        8,
        9,
        1.5,
    )
    assert type(error) is kind
    assert str(error) == "too many"
