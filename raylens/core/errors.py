"""The errors of raylens. Each has a code, an HTTP status, and says whether a retry may help.

::

    RaylensError
      InvalidRequest      400  (422 in dialects of our own)
        UnsupportedTask   400
      UnknownModel        404
      UnknownJob          404
      Conflict            409
      PayloadTooLarge     413
      UnsupportedMedia    415
      QueueFull           429  retryable
      Overloaded          503  retryable
      ModelNotLoaded      503  retryable
      DeadlineExceeded    504  retryable
      ModelFailed         500

Their arguments are positional, so that an error survives pickling between processes.
"""

from __future__ import annotations


class RaylensError(Exception):
    """Base class. ``field`` names the part of the request that is at fault; ``limit`` and
    ``actual`` are the allowed and the sent value. ``retry_after`` is in seconds."""

    code = "internal_error"
    http_status = 500
    retryable = False

    def __init__(
        self,
        message: str,
        field: str | None = None,
        limit: float | str | None = None,
        actual: float | str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, field, limit, actual, retry_after)
        self.message = message
        self.field = field
        self.limit = limit
        self.actual = actual
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    def about(self, field: str) -> RaylensError:
        """Return the same error for a field of another name."""
        message = self.message
        if self.field is not None and message.startswith(f"{self.field}:"):
            message = field + message.removeprefix(self.field)
        return type(self)(message, field, self.limit, self.actual, self.retry_after)


class InvalidRequest(RaylensError):
    code = "invalid_request"
    http_status = 400


class UnsupportedTask(InvalidRequest):
    """The model can't do this task, or no model can."""

    code = "unsupported_task"


class UnknownModel(RaylensError):
    code = "model_not_found"
    http_status = 404


class UnknownJob(RaylensError):
    code = "job_not_found"
    http_status = 404


class Conflict(RaylensError):
    """The request contradicts the current state, such as a retry of a job that is running."""

    code = "conflict"
    http_status = 409


class PayloadTooLarge(RaylensError):
    code = "payload_too_large"
    http_status = 413


class UnsupportedMedia(RaylensError):
    """The bytes are not a picture in a supported format."""

    code = "unsupported_media"
    http_status = 415


class QueueFull(RaylensError):
    """The job queue is at its capacity."""

    code = "queue_full"
    http_status = 429
    retryable = True


class Overloaded(RaylensError):
    code = "overloaded"
    http_status = 503
    retryable = True


class ModelNotLoaded(RaylensError):
    code = "model_not_loaded"
    http_status = 503
    retryable = True


class DeadlineExceeded(RaylensError):
    code = "deadline_exceeded"
    http_status = 504
    retryable = True


class ModelFailed(RaylensError):
    """The model failed on this request. Other requests are unaffected."""

    code = "model_failed"
