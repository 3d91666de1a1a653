from __future__ import annotations

import pickle

import pytest

from raylens.core import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.RaylensError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_data_between_processes(kind: type[errors.RaylensError]) -> None:
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
