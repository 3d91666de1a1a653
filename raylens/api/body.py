"""What request bodies share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Body(BaseModel):
    """A part of a request's body; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


def _well_formed(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_well_formed)]
