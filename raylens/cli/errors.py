"""Errors of the command line; their messages are meant for its user.

::

    UsageError         the command cannot run with these arguments
    ClientError        the server did not do what was requested
      StatusError      the server answered with an error
      Unreachable      the server did not answer in time
"""

from __future__ import annotations

REFUSED = 2
"""Exit status if the arguments are invalid, or the server refuses the request: the same one would
be refused again."""
BUSY = frozenset({429, 503, 507})
"""HTTP statuses of a server that is up but has no capacity."""
RESTARTING = frozenset({500, 502, 504})
"""HTTP statuses of a server, or of its proxy, while a part of it restarts."""


class UsageError(Exception):
    """The command cannot run with these arguments; the message names the reason."""


class ClientError(Exception):
    """The root of the errors of :class:`raylens.cli.client.Client`."""


class StatusError(ClientError):
    """The server answered with an error status; the message is the answer's ``detail``.

    ``retry_after``: seconds from the ``Retry-After`` header, if there is one.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after

    @property
    def exit_status(self) -> int:
        """The command's, if this ended it: 1 if another try may succeed."""
        return 1 if self.status in BUSY | RESTARTING else REFUSED


class Unreachable(ClientError):
    """The server did not answer a request in time.

    ``server_is_up``: it answered other requests meanwhile, so the fault lies with this request.
    """

    def __init__(self, message: str, server_is_up: bool = False) -> None:
        super().__init__(message)
        self.server_is_up = server_is_up
