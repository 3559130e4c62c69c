"""The exceptions of this package, and nothing else.

Every message says what failed, the value seen, the value allowed and the next step.

::

    Baichuan2Error
    ├── CheckpointError        a model directory or one of its files is wrong
    ├── FetchError             a download failed, or what arrived is not what was asked for
    ├── CompileError           a step of the compiler failed, or cannot be started
    ├── ArtifactError          a compiled bundle or one of its files is wrong
    ├── BackendError           an engine failed
    │   ├── BackendUnavailable the engine cannot run on this machine
    │   └── DeviceError        a device, or the vendor's library that drives it, reported a fault
    ├── ContextLengthError     a sequence does not fit the context
    ├── RequestError           a setting or an input of the user is not allowed
    │   └── TooCostly          it takes more work than is allowed
    └── ServiceError           a server refused or gave up a request that is valid
        ├── CallerLeft         nobody waits for the answer any more
        ├── QueueFull          too many requests wait already
        ├── DeadlineError      a request ran out of time
        └── ShutdownError      the server is shutting down
"""

from baichuan2_tpu.quoting import escape_controls, shorten

__all__ = [
    "ArtifactError",
    "BackendError",
    "BackendUnavailable",
    "Baichuan2Error",
    "CallerLeft",
    "CheckpointError",
    "CompileError",
    "ContextLengthError",
    "DeadlineError",
    "DeviceError",
    "FetchError",
    "QueueFull",
    "RequestError",
    "ServiceError",
    "ShutdownError",
    "TooCostly",
]


_MOST_CHARACTERS = 2000


class Baichuan2Error(Exception):
    """Base class: anything a user can meet and act on.

    The values in a message can be anybody's: control characters are written as escapes, and of a message that
    is longer than 2,000 characters the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape_controls(shorten(message, _MOST_CHARACTERS)))


class CheckpointError(Baichuan2Error):
    """A model directory or one of its files is wrong; the message names the file and the tensor."""


class FetchError(Baichuan2Error):
    """A download failed, or what arrived is not what was asked for."""


class CompileError(Baichuan2Error):
    """A step of the compiler failed; the message has command, exit code, last lines and path of the log."""


class ArtifactError(Baichuan2Error):
    """A compiled bundle or one of its files is wrong; the message names the file."""


class BackendError(Baichuan2Error):
    """An engine failed while it ran."""


class BackendUnavailable(BackendError):  # noqa: N818 - the name says the state, like the vendor's own
    """The engine cannot run on this machine; the message says what is missing."""


class DeviceError(BackendError):
    """A device, or the vendor's library that drives it, reported a fault while it ran."""


class ContextLengthError(Baichuan2Error):
    """A sequence does not fit the context; the message names both numbers."""


class RequestError(Baichuan2Error):
    """A setting or an input of the user is not allowed."""


class TooCostly(RequestError):  # noqa: N818 - the name says what it is
    """It takes more work than is allowed."""


class ServiceError(Baichuan2Error):
    """A server gave up a request, which is all right in itself; the same one may succeed later."""


class CallerLeft(ServiceError):  # noqa: N818 - the name says the event
    """Nobody waits for the answer any more."""


class QueueFull(ServiceError):  # noqa: N818 - the name says the state
    """Too many requests wait already; nothing was done for this one."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When there is likely to be room."""


class DeadlineError(ServiceError):
    """The time a request had is over; the message names it."""


class ShutdownError(ServiceError):
    """The server stops and takes or finishes no more requests."""
