"""The clocks of the job queue: one for people, and one that never steps for leases and waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

SLEW = 1 / 30
"""Seconds by which the store's clock may be set forward or back per second."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """The clocks of one machine. All of its processes read the same times."""

    def time(self) -> float:
        """Return the wall-clock time, in seconds since the epoch. An operator may set it."""
        ...

    def monotonic(self) -> float:
        """Return the seconds since the machine started, suspended ones included."""
        ...

    @property
    def boot_id(self) -> str:
        """What tells this start of the machine from others; empty if unknown."""
        ...


class SystemClock(Clock):
    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        if hasattr(time, "CLOCK_BOOTTIME"):  # Linux
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    @property
    def boot_id(self) -> str:
        return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


class StoreClock:
    """The clock of the job store, kept by this machine's monotonic clock.

    Before the first :meth:`set`, it is the wall clock. A step of the store's own clock, as when
    somebody sets that of its server, is followed slowly, so that no lease ends early.
    """

    def __init__(self, machine: Clock) -> None:
        self.machine = machine
        self._epoch: float | None = None
        self._set_at = 0.0

    def set(self, time: float) -> None:
        """Set the clock to the store's time, in seconds since the epoch."""
        now = self.machine.monotonic()
        epoch = time - now
        if self._epoch is not None:
            limit = SLEW * (now - self._set_at)
            epoch = self._epoch + max(-limit, min(limit, epoch - self._epoch))
        self._epoch = epoch
        self._set_at = now

    def now(self) -> float:
        """Return the store's time, in seconds since the epoch."""
        if self._epoch is None:
            return self.machine.time()
        return self._epoch + self.machine.monotonic()

    @property
    def wall_offset(self) -> float:
        """Seconds to add to get wall-clock time. It is whole seconds, because smaller differences
        only come from reading two clocks."""
        return round(self.machine.time() - self.now())
