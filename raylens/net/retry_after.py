"""The ``Retry-After`` header (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,9}")


def parse_retry_after(
    header: str | None, longest_s: float, now: float | None = None
) -> float | None:
    """Return the seconds to wait, at most ``longest_s``; None if the header is absent or malformed.

    The header holds seconds or a date. A date is compared with ``now``, in seconds since the epoch;
    the default is this machine's clock.
    """
    if header is None:
        return None
    if _SECONDS.fullmatch(header.strip()):
        return min(float(header), longest_s)
    try:
        date = parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    remaining = date - (time.time() if now is None else now)
    return min(max(0.0, remaining), longest_s)
