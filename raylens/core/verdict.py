"""Yes, no, or unclear."""

from __future__ import annotations

import re

Verdict = bool | None
"""Whether a picture shows something; None if unclear."""
# A leading yes or no as a whole word, but not 'yes or no' or 'yes/no'.
_YES_OR_NO = re.compile(r"[\W_]*(yes|no)(?![^\W_])(?!\s*(?:/|or\b)\s*(?:yes|no)\b)", re.IGNORECASE)


def parse_yes_or_no(text: str | None) -> Verdict:
    """Return True if a text begins with yes, False if it begins with no, and None otherwise.

    An echo of "yes or no" counts as neither.
    """
    match = _YES_OR_NO.match(text or "")
    return None if match is None else match[1].lower() == "yes"
