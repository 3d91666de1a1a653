"""Sends questions about one picture to one replica, within bounds.

A replica that has seen a picture has its features and its prefix in a cache. This is consistent
hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016), where the load is a replica's
share of the requests of late.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Set
from typing import Generic, TypeVar

MAX_SHARE = 1.2
"""The largest share of a replica, over an equal share. What is beyond goes to the next one."""
POINTS = 100
"""Of each replica on the ring."""
WINDOW = 100
"""Requests per replica that "of late" means: the weight of a request falls by half after 69 of
them for each replica."""
_SAMPLE_BYTES = 2**13

R = TypeVar("R", bound=Hashable)


def picture_key(data: bytes) -> str:
    """Return a key of a file. Long files are told apart by their lengths, heads and tails: a
    replica that is chosen because of another file's key serves the request all the same."""
    digest = hashlib.blake2b(str(len(data)).encode(), digest_size=8)
    digest.update(data[:_SAMPLE_BYTES])
    digest.update(data[-_SAMPLE_BYTES:])
    return digest.hexdigest()


class Affinity(Generic[R]):
    """Chooses among replicas, which have names that outlive this process."""

    def __init__(self) -> None:
        self._points: list[int] = []
        self._owners: list[R] = []
        """Of each point."""
        self._counts: dict[R, float] = {}
        """Recent requests of each replica."""

    @property
    def replicas(self) -> Set[R]:
        return self._counts.keys()

    def update(self, replicas: dict[R, str]) -> None:
        """Set the replicas, with their names. Those that stay keep nearly all of their pictures."""
        points = sorted(
            (_hash(f"{name}:{number}"), index)
            for index, name in enumerate(replicas.values())
            for number in range(POINTS)
        )
        names = list(replicas)
        self._points = [point for point, _ in points]
        self._owners = [names[index] for _, index in points]
        # A new replica begins at the average: it should not get all pictures at first.
        average = sum(self._counts.values()) / max(1, len(self._counts))
        self._counts = {replica: self._counts.get(replica, average) for replica in replicas}

    def choose(self, key: str, is_bounded: bool = True) -> R | None:
        """Return the replica for a key: the first on the ring with room for one more request, or
        without bounds just the first. None if there are no replicas."""
        replicas = self._in_order(key)
        if not is_bounded:
            return next(replicas, None)
        total = sum(self._counts.values()) + 1
        limit = math.ceil(MAX_SHARE * total / max(1, len(self._counts)))
        return next((replica for replica in replicas if self._counts[replica] + 1 <= limit), None)

    def note(self, replica: R) -> None:
        """Note that a request goes to a replica."""
        if replica not in self._counts:
            return
        decay = 1 - 1 / (WINDOW * len(self._counts))
        for other in self._counts:
            self._counts[other] *= decay
        self._counts[replica] += 1

    def _in_order(self, key: str) -> Iterator[R]:
        """Yield the replicas in the order of the ring, from the key's point on."""
        start = bisect_right(self._points, _hash(key))
        seen: set[R] = set()
        for index in range(start - len(self._owners), start):  # negative ones count from the end
            replica = self._owners[index]
            if replica not in seen:
                seen.add(replica)
                yield replica


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
