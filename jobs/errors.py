"""Every error that Labelmill raises, by whose fault it is.

The class decides what happens: an `ImageError` is stored as the image's outcome, a `JobError` ends its job,
an `Unavailable` is retried, a `UserError` is shown to the user. The docstring is the default message.
"""

from __future__ import annotations

import inspect
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why an image got no label. The names are a contract: people query them."""

    UNIDENTIFIED = "unidentified"  # the bytes are not of a known image format
    CORRUPT = "corrupt"  # a known format, but broken, truncated or without pixels
    TOO_LARGE = "too_large"  # over the limit for bytes, pixels or frames
    FORMAT_NOT_ALLOWED = "format_not_allowed"  # a format that is not allowed, or an archive that is not read
    TIMEOUT = "timeout"  # took longer than the limit per image
    MODEL_ERROR = "model_error"  # the model returned something that is not a probability
    QUARANTINED = "quarantined"  # kept killing its worker
    SOURCE_MISSING = "source_missing"  # the file did not exist or could not be read at its turn
    SOURCE_CHANGED = "source_changed"  # the file is not the one that was submitted
    SOURCE_FORBIDDEN = "source_forbidden"  # a path outside its folder, not a regular file, or too long a name


class LabelmillError(Exception):
    """Something went wrong in Labelmill."""

    #: The exit code of the console command.
    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class ImageError(LabelmillError):
    """This image cannot be classified."""

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        super().__init__(detail or str(code))
        self.code = code
        self.detail = detail


class JobError(LabelmillError):
    """The job cannot continue: no single image is at fault, and a retry would not help."""


class PayloadDamaged(JobError):
    """A chunk's payload is missing from the store or is not what was stored."""


class ModelRefused(JobError):
    """The model's file is missing, or is not the file that was registered."""


class Unavailable(LabelmillError):
    """A service is out of reach for now: the broker, the ledger or the store."""


class LedgerFull(Unavailable):
    """The ledger's disk is full: free some space. Workers then go on by themselves."""


class LeaseLost(LabelmillError):
    """Another worker owns this chunk now, so these results are discarded."""


class Stopped(LabelmillError):
    """The job was stopped or removed while it was being submitted."""


class UserError(LabelmillError):
    """The request cannot be carried out as it stands."""

    exit_code = 2


class SettingsError(UserError):
    """A setting is missing or malformed."""


class SourceError(UserError):
    """A source cannot be read."""


class AddressForbidden(UserError):
    """A URL that a user named leads to an address that may not be requested."""


class NotFound(UserError):
    """The ledger has no such object."""


class Conflict(UserError):
    """The request conflicts with the current state."""


class LedgerNotReady(UserError):
    """The ledger has not been migrated: run `labelmill db upgrade`."""


class TrainingDiverged(LabelmillError):
    """The training run diverged: its loss is not a finite number."""


class DataUnavailable(UserError):
    """The images of a dataset cannot be read."""
