"""The errors of raylens. Each has a code, an HTTP status, and the class of failure that it is.

::

    RaylensError            500  transient
      InvalidRequest        400  permanent  (422 in dialects of our own)
        UnsupportedTask     400  permanent
      Unauthorized          401  permanent
      PermissionDenied      403  permanent
      RequestTimeout        408  transient
      UnknownModel          404  permanent
      UnknownJob            404  permanent
      UnknownSession        404  permanent
      Conflict              409  permanent
      PayloadTooLarge       413  permanent
      UnsupportedMedia      415  permanent
      MisdirectedRequest    421  permanent
      TooManyRequests       429  capacity
        QueueFull           429  capacity
      Overloaded            503  capacity
      ModelNotLoaded        503  capacity
      InsufficientStorage   507  capacity
      DeadlineExceeded      504  transient
      ModelFailed           500  transient

Their arguments are positional, so that an error survives pickling between processes.
"""

from __future__ import annotations

from enum import Enum


class FailureClass(Enum):
    """What a failure says about another attempt at the same work."""

    CAPACITY = "capacity"
    """Nothing was wrong with the work: a resource was full or away. It succeeds later."""
    TRANSIENT = "transient"
    """The work failed, for a reason that may be gone the next time."""
    PERMANENT = "permanent"
    """The work fails every time."""


class RaylensError(Exception):
    """Base class. ``field`` names the part of the request that is at fault; ``limit`` and
    ``actual`` are the allowed and the sent value. ``retry_after`` is in seconds."""

    code = "internal_error"
    http_status = 500
    failure_class = FailureClass.TRANSIENT
    model: str | None = None
    """The model that failed, if a request to it did. It doesn't cross between processes."""

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


def picture_field(index: int) -> str:
    """Return the field by which models call a picture of a request. Its senders have other names
    for it, which the graph knows."""
    return f"image.{index}"


def picture_index(field: str | None) -> int | None:
    """Return the index of the picture that :func:`picture_field` names; None for other fields."""
    prefix, _, index = (field or "").partition(".")
    return int(index) if prefix == "image" and index.isdecimal() else None


class InvalidRequest(RaylensError):
    code = "invalid_request"
    http_status = 400
    failure_class = FailureClass.PERMANENT


class UnsupportedTask(InvalidRequest):
    """The model can't do this task, or no model can."""

    code = "unsupported_task"


class Unauthorized(RaylensError):
    """The request has no key, or an unknown one."""

    code = "invalid_api_key"
    http_status = 401
    failure_class = FailureClass.PERMANENT


class PermissionDenied(RaylensError):
    """The caller may not do this."""

    code = "permission_denied"
    http_status = 403
    failure_class = FailureClass.PERMANENT


class RequestTimeout(RaylensError):
    """The request's body did not arrive in time."""

    code = "request_timeout"
    http_status = 408


class UnknownModel(RaylensError):
    code = "model_not_found"
    http_status = 404
    failure_class = FailureClass.PERMANENT


class UnknownJob(RaylensError):
    code = "job_not_found"
    http_status = 404
    failure_class = FailureClass.PERMANENT


class UnknownSession(RaylensError):
    """There is no such session of live video, or it has ended."""

    code = "session_not_found"
    http_status = 404
    failure_class = FailureClass.PERMANENT


class Conflict(RaylensError):
    """The request contradicts the current state, such as a retry of a job that is running."""

    code = "conflict"
    http_status = 409
    failure_class = FailureClass.PERMANENT


class PayloadTooLarge(RaylensError):
    code = "payload_too_large"
    http_status = 413
    failure_class = FailureClass.PERMANENT


class UnsupportedMedia(RaylensError):
    """The bytes are not a picture in a supported format."""

    code = "unsupported_media"
    http_status = 415
    failure_class = FailureClass.PERMANENT


class MisdirectedRequest(RaylensError):
    """The request is for a server of another name (RFC 9110, section 15.5.20)."""

    code = "misdirected_request"
    http_status = 421
    failure_class = FailureClass.PERMANENT


class TooManyRequests(RaylensError):
    """The caller has reached a limit on how much it may ask for at a time."""

    code = "rate_limit_exceeded"
    http_status = 429
    failure_class = FailureClass.CAPACITY


class QueueFull(TooManyRequests):
    """The job queue is at its capacity."""

    code = "queue_full"


class Overloaded(RaylensError):
    code = "overloaded"
    http_status = 503
    failure_class = FailureClass.CAPACITY


class ModelNotLoaded(RaylensError):
    code = "model_not_loaded"
    http_status = 503
    failure_class = FailureClass.CAPACITY
    on_demand: str | None = None
    """If a request loads the model, which was scaled to zero: its state, such as ``loading for
    3 s``. It doesn't cross between processes."""


class InsufficientStorage(RaylensError):
    """There is no room to store what was sent."""

    code = "insufficient_storage"
    http_status = 507
    failure_class = FailureClass.CAPACITY


class DeadlineExceeded(RaylensError):
    code = "deadline_exceeded"
    http_status = 504


class ModelFailed(RaylensError):
    """The model failed on this request. Other requests are unaffected."""

    code = "model_failed"
