"""Every error that Labelmill raises, by whose fault it is.

The class decides what happens: an `ImageError` is stored as the image's outcome, a `JobError` ends its job,
an `Unavailable` is retried, a `UserError` is shown to the user.
"""

from __future__ import annotations

import inspect
from typing import Final

from jobs.described import DescribedEnum

#: The note of an error whose cause only an examination tells. A command prints it below the message.
ASK_THE_DOCTOR: Final = "`labelmill doctor` looks for the cause."


class ErrorCode(DescribedEnum):
    """Why an image got no label. The names are a contract: people query them."""

    UNIDENTIFIED = (
        "unidentified",
        "the file is not an image of a known format: it is empty, text or an HTML page",
    )
    CORRUPT = (
        "corrupt",
        "the format is known, but the file is truncated or broken, fails its checksum, has no pixels, or has "
        "a comment or profile that unpacks without end",
    )
    TOO_LARGE = (
        "too_large",
        "the image exceeds a limit of bytes, pixels or frames, has a side over 65,535 pixels, more than 100 "
        "scans (JPEG), or more than 10,000 parts without pixels (PNG, JPEG, GIF). The header decides, before "
        "anything is decoded",
    )
    FORMAT_NOT_ALLOWED = (
        "format_not_allowed",
        "the format is real, but is not read, or LABELMILL_IMAGE_FORMATS excludes it; or the image is a ZIP "
        "member that is neither stored nor deflated",
    )
    TIMEOUT = (
        "timeout",
        "decoding took longer than LABELMILL_IMAGE_SECONDS; or the image, alone in its chunk, hit the time "
        "limit",
    )
    MODEL_ERROR = "model_error", "the model returned something that is not a probability"
    QUARANTINED = (
        "quarantined",
        "the image, alone in its chunk, crashed its worker three times; `detail` says how",
    )
    SOURCE_MISSING = (
        "source_missing",
        "the file was missing or unreadable, for the producer or, by reference, for a worker; or its server "
        "could not be reached in ten attempts (two for a link in a manifest), or refused the request; or a "
        "manifest's row names no image",
    )
    SOURCE_CHANGED = (
        "source_changed",
        "the image was submitted by reference, and its size or SHA-256 differed when a worker read it",
    )
    SOURCE_FORBIDDEN = (
        "source_forbidden",
        "the path leaves its folder, archive or root, is not a regular file, or its name has more than 4,096 "
        "bytes; or a link leads to a private address (LABELMILL_PRIVATE_HOSTS) or has a scheme that is not "
        "read",
    )


class LabelmillError(Exception):
    """Something went wrong in Labelmill."""

    #: The exit code of the console command.
    exit_code = 1

    def __init__(self, message: str, *, note: str | None = None) -> None:
        super().__init__(message)
        if note is not None:
            self.add_note(note)


class SelfExplanatory(LabelmillError):
    """An error whose docstring says what happened to what: it is the default message."""

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


class LedgerFull(SelfExplanatory, Unavailable):
    """The ledger's disk is full: free some space. Workers then go on by themselves."""


class LeaseLost(SelfExplanatory):
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


class LedgerNotReady(SelfExplanatory, UserError):
    """The ledger has not been migrated: run `labelmill db upgrade`."""


class TrainingDiverged(LabelmillError):
    """The training run diverged: its loss is not a finite number."""


class DataUnavailable(UserError):
    """The images of a dataset cannot be read."""
