"""The options of a job: what its owner decides about it, apart from its images and how they are read.

They are made at the face (the client, a command, a request) and passed whole to `open_job` in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self, TypedDict

from jobs.errors import UserError
from jobs.limits import MAX_KEY_LENGTH, MAX_PRIORITY, MAX_TOP_K, ErrorLimits

#: The project of everything that was not given another.
DEFAULT_PROJECT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """The options of a job. Raises UserError if the key, the priority or `top_k` is out of range."""

    #: The project that the job belongs to.
    project: str = DEFAULT_PROJECT
    #: The owner's name for this submission. In a project, the same key with the same content returns the same
    #: job.
    key: str | None = None
    #: The model that classifies the images: its id, the first characters of its id (at least six), or an
    #: alias. Default: the dataset's champion.
    model: str | None = None
    #: The dataset whose champion or alias is meant. Default: `mnist`. A model that is given by its id must
    #: belong to the dataset if both are given.
    dataset: str | None = None
    #: Stop the job early, as failed, if it has more errors than these limits allow.
    error_limits: ErrorLimits | None = None
    #: From -100 to 100; jobs with a higher priority are classified first. Default: 10 for a job of at most 64
    #: images, 0 for any other.
    priority: int | None = None
    #: Keep this many (1 to 10) of the most probable classes of each image, in `alternatives`. Default: only
    #: the label.
    top_k: int | None = None
    #: Its caller waits for it: lists of batches leave it out by default, and no webhook reports it.
    unlisted: bool = False

    def __post_init__(self) -> None:
        if self.key is not None and not 0 < len(self.key) <= MAX_KEY_LENGTH:
            raise UserError(
                f"A submission key has 1 to {MAX_KEY_LENGTH} characters; this one has {len(self.key):,}."
            )
        if self.priority is not None and not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise UserError(f"A priority is from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {self.priority}.")
        if self.top_k is not None and not 1 <= self.top_k <= MAX_TOP_K:
            raise UserError(f"top must be from 1 to {MAX_TOP_K} classes, got {self.top_k}.")

    def to_request(self) -> dict[str, Any]:
        """Return the options as fields of a batch in the HTTP API, where the key is a header."""
        limits = self.error_limits or ErrorLimits()
        return {name: getattr(self, name) for name in _IN_REQUESTS} | {
            "max_errors": limits.count,
            "max_error_rate": limits.rate,
            "min_sample": None if limits.rate is None else limits.sample,
        }

    @classmethod
    def from_request(
        cls, request: Mapping[str, Any], *, project: str = DEFAULT_PROJECT, key: str | None = None
    ) -> Self:
        """Return the options of a batch from its request, whose other fields are ignored.

        The project and the key are not fields of the request: both come from its headers.
        """
        count, rate = request.get("max_errors"), request.get("max_error_rate")
        limits = None
        if count is not None or rate is not None:
            limits = ErrorLimits(count, rate, request.get("min_sample") or ErrorLimits().sample)
        same = {name: request[name] for name in _IN_REQUESTS if request.get(name) is not None}
        return cls(project=project, key=key, error_limits=limits, **same)


class JobKeywords(TypedDict, total=False):
    """`JobOptions` as the keyword arguments of a method, for type checkers. A test compares the two."""

    project: str
    key: str | None
    model: str | None
    dataset: str | None
    error_limits: ErrorLimits | None
    priority: int | None
    top_k: int | None
    unlisted: bool


_NOT_IN_REQUESTS: Final = ("project", "key", "error_limits", "unlisted")

#: The options whose name and value are the same in a request for a batch.
_IN_REQUESTS: Final = [each.name for each in fields(JobOptions) if each.name not in _NOT_IN_REQUESTS]

DEFAULT_OPTIONS: Final = JobOptions()
