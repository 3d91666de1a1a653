"""Errors of the command line; their messages are meant for its user.

::

    UsageError         the command cannot run with these arguments
    ClientError        the server did not do what was requested
      StatusError      the server answered with an error
      Unreachable      the server did not answer in time
"""

from __future__ import annotations


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


class Unreachable(ClientError):
    """The server did not answer a request in time.

    ``server_is_up``: it answered other requests meanwhile, so the fault lies with this request.
    """

    def __init__(self, message: str, server_is_up: bool = False) -> None:
        super().__init__(message)
        self.server_is_up = server_is_up
