from __future__ import annotations

import pytest
from pydantic import ValidationError

from raylens.config import AppConfig

MODEL = {"name": "smolvlm", "family": "smolvlm"}


def test_a_misspelled_key_is_named() -> None:
    with pytest.raises(ValidationError, match=r"models\.0\.max_wating"):
        AppConfig.model_validate({"models": [{**MODEL, "max_wating": 3}]})


def test_names_and_aliases_are_unique() -> None:
    with pytest.raises(ValidationError, match="'a' is given twice"):
        AppConfig.model_validate({"models": [{**MODEL, "aliases": ["a"]}, {**MODEL, "name": "a"}]})


def test_a_model_is_needed() -> None:
    with pytest.raises(ValidationError, match="at least one"):
        AppConfig.model_validate({"models": []})


def test_a_configuration_cannot_be_changed() -> None:
    config = AppConfig.model_validate({"models": [MODEL]})
    with pytest.raises(ValidationError, match="frozen"):
        config.log_level = "DEBUG"  # type: ignore[misc]
