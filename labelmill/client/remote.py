"""The client of the HTTP API, for a machine that reaches neither ledger nor broker: jobs and corrections."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import quote

from pydantic import TypeAdapter

from jobs.errors import NotFound, Unavailable, UserError
from jobs.ids import id_range, is_id, new_id
from jobs.ledger.jobs.filters import FilterKeywords
from jobs.ledger.jobs.outcomes import COLUMN_NAMES, Prediction
from jobs.ledger.jobs.queries import JobStatus, no_job
from jobs.ledger.learning.corrections import Correction
from jobs.ledger.learning.models import CHAMPION
from jobs.options import JobKeywords, JobOptions
from jobs.schema import JobState
from jobs.settings import Settings
from labelmill.client.http import Api, NothingToRetry
from labelmill.client.installation import accept_numpy_numbers
from labelmill.client.shared import CommonMethods
from labelmill.labels.correction_files import (
    CorrectionRequest,
    collect,
    requests_in,
    summarize_problems,
)
from producer.packing import pack
from producer.sources import SourceImage

if TYPE_CHECKING:
    from producer.submit import Submitted

#: The most jobs, results and corrections that the API takes or returns at a time.
_PAGE_JOBS: Final = 100
_PAGE_RESULTS: Final = 1_000
_MAX_CORRECTIONS: Final = 1_000

_STATUS: Final = TypeAdapter(JobStatus)


def connect(url: str, *, key: str) -> RemoteClient:
    """Return a client of the HTTP API at this URL, such as `https://labelmill.example.org`.

    `labelmill keys create` makes the key. Raises UserError if one of them is malformed.
    """
    return RemoteClient(url, key)


class RemoteClient(CommonMethods):
    """A connection to the HTTP API of a Labelmill installation. `labelmill.connect` makes one.

    It has the methods of `Client` for jobs and corrections, with the same results and errors. A request that
    breaks is repeated for a minute. Do not share a client between threads.
    """

    #: As in `Client`. Here the server reports it, in its log.
    broker_unavailable: Final = False

    def __init__(
        self,
        url: str,
        key: str,
        *,
        settings: Settings | None = None,
        on_retry: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """Prepare requests. `on_retry` is called with the reason when a request breaks and will be repeated.

        `settings` has the limits for reading images. Raises UserError if the URL or the key is malformed.
        """
        self.settings = settings or Settings.load()
        self._api = Api(url, key, on_retry=on_retry)

    def close(self) -> None:
        """Close the connection."""
        self._api.close()

    def __getattr__(self, name: str) -> Any:
        from labelmill.client import Client

        if name.startswith("_") or not hasattr(Client, name):
            raise AttributeError(f"'RemoteClient' has no attribute {name!r}")
        raise NotInApi(
            f"`Client.{name}` does not work over HTTP: run it where the ledger can be reached, without "
            "LABELMILL_API_URL."
        )

    def submission(
        self,
        images: Iterable[SourceImage],
        *,
        by_reference: bool = False,
        on_progress: Callable[[int], None] = lambda _images: None,
        on_wait: Callable[[str], None] = lambda _job_id: None,  # noqa: ARG002 -- as `Client.submission`
        **options: Unpack[JobKeywords],
    ) -> Submitted:
        """Upload images, and submit them as one job. Return the job's id, its size, and whether it is new.

        The arguments and errors are those of `Client.submission`. The images are packed while they are sent:
        memory holds a few of them, and nothing is written to disk. If the upload breaks, they are read again.
        UserError for `by_reference`, because the server cannot read the files of this machine, and for
        `project`, because it is that of the key.
        """
        from producer.submit import Submitted

        if by_reference:
            raise UserError(
                "By reference does not work over the HTTP API, which cannot read the files of this machine: "
                "leave it out."
            )
        wanted = JobOptions(**options)
        _check_project(wanted.project if "project" in options else None)
        # Before the upload, which may take long: an unknown model is an error now.
        model_id = self.model_id(wanted.model, dataset=wanted.dataset)
        if wanted.model is not None:
            wanted = replace(wanted, model=model_id)
        count = 0
        uploads = 0

        def report(done: int) -> None:
            nonlocal count
            count = done
            on_progress(done)

        def pieces() -> Iterator[bytes]:
            nonlocal uploads
            uploads += 1
            if uploads > 1 and iter(images) is images:
                raise Unavailable(
                    "The upload broke, and these images cannot be read again: submit them again."
                )
            return pack(images, report)

        body = {
            **wanted.to_request(),
            "input_file_id": self._api.upload("images.tar", pieces)["id"],
            "delete_input": True,
        }
        file_path = f"/files/{body['input_file_id']}"
        try:
            batch = self._api.request(
                "POST",
                "/batches",
                body=body,
                idempotency_key=_idempotency_key(wanted.key),
            )
        except BaseException:
            self._api.delete_quietly(file_path)  # refused if the batch was committed and needs the file
            raise
        is_new = wanted.key is None or batch["input_file_id"] == body["input_file_id"]
        if not is_new:
            self._api.delete_quietly(file_path)
        return Submitted(batch["id"], count, is_new)

    def job_id(self, typed: str) -> str:
        """Return the full id of a job, given its id or the first characters of it (at least six).

        Raises Conflict if several jobs match, NotFound if none does.
        """
        text = typed.strip().lower()
        if is_id(text):
            return text
        if not text or id_range(text) is None:
            raise no_job(typed)
        found: str = self._api.request("GET", f"/batches/{text}")["id"]
        return found

    def model_id(self, typed: str | None = None, *, dataset: str | None = None) -> str:
        """Return a model's full id, given the first characters of it or an alias; by default the champion's.

        Raises NotFound; Conflict if several models match, or if it is not a model of `dataset`.
        """
        name = quote((typed or CHAMPION).strip(), safe="", errors="surrogateescape")
        found: str = self._api.request("GET", f"/models/{name}", query={"dataset": dataset})["id"]
        return found

    def status(self, job_id: str) -> JobStatus:
        """Return the job's state, counts, model, rate (images per second) and times. Raises NotFound."""
        return _to_status(self._api.request("GET", _path(job_id)))

    @accept_numpy_numbers
    def jobs(
        self, *, limit: int = 20, state: JobState | None = None, project: str | None = None
    ) -> list[JobStatus]:
        """Return the latest jobs of the key's project, newest first; with `state`, only jobs in this state.

        Raises UserError if `project` is given.
        """
        _check_project(project)
        found: list[JobStatus] = []
        query: dict[str, object] = {"state": state}
        while True:
            query["limit"] = min(_PAGE_JOBS, limit - len(found))
            page = self._api.request("GET", "/batches", query=query)
            found += map(_to_status, page["data"])
            if not page["has_more"] or len(found) >= limit:
                return found
            query["after"] = page["last_id"]

    def cancel(self, job_id: str) -> JobStatus:
        """Stop the job and return its status. Images that were already classified keep their predictions.

        Raises NotFound, and Conflict if the job had already finished.
        """
        return _to_status(self._api.request("POST", _path(job_id, "/cancel")))

    def pause(self, job_id: str) -> JobStatus:
        """Pause the job and return its status. Chunks that workers have begun are still recorded.

        Pausing a paused job is not an error. Raises NotFound, and Conflict if the job had already finished.
        """
        return _to_status(self._api.request("POST", _path(job_id, "/pause")))

    def resume(self, job_id: str) -> JobStatus:
        """Resume a paused job and return its status. Raises NotFound, and Conflict if it is not paused."""
        return _to_status(self._api.request("POST", _path(job_id, "/resume")))

    def retry(
        self,
        job_id: str,
        *,
        failed_only: bool = False,
        key: str | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
        on_wait: Callable[[str], None] = lambda _job_id: None,  # noqa: ARG002 -- as `Client.retry`
    ) -> Submitted | None:
        """Submit the images of a finished job that have no label, as a new job with the same model.

        For the arguments and errors, see `Client.retry`. The server copies the images after it has answered,
        so the result has the number of images copied so far.
        """
        from producer.submit import Submitted

        query = {"failed_only": "true"} if failed_only else {}
        try:
            batch = self._api.request(
                "POST", _path(job_id, "/retry"), query=query, idempotency_key=_idempotency_key(key)
            )
        except NothingToRetry:
            return None
        status = _to_status(batch)
        on_progress(status.total)
        return Submitted(status.id, status.total, new=True)

    @accept_numpy_numbers
    def predictions(
        self, job_id: str, *, after: int = -1, limit: int | None = None, **conditions: Unpack[FilterKeywords]
    ) -> Iterator[Prediction]:
        """Yield the job's predictions in index order, reading one page at a time.

        The conditions and errors are those of `Client.predictions`.
        """
        # A flag is sent only if it is set.
        shown = {name: value for name, value in conditions.items() if value is not False}
        query = {name: "true" if value is True else value for name, value in shown.items()}

        def page(after: int, left: int | None) -> list[Prediction]:
            size = _PAGE_RESULTS if left is None else min(_PAGE_RESULTS, left)
            found = self._api.request(
                "GET", _path(job_id, "/results"), query={**query, "after": after, "limit": size}
            )
            return list(map(_to_prediction, found))

        def pages(found: list[Prediction], left: int | None) -> Iterator[Prediction]:
            while True:
                yield from found
                left = None if left is None else left - len(found)
                if len(found) < _PAGE_RESULTS or left == 0:
                    return
                found = page(found[-1].index, left)

        # Read the first page now, so that this call reports a wrong id or label
        return pages(page(after, limit), limit)

    @accept_numpy_numbers
    def correct(self, job_id: str, index: int, label: str) -> Correction:
        """Store the true label of an image. The next training run learns from it.

        Needs a key with the role `review`. Errors are those of `Client.correct`.
        """
        return _to_correction(self._api.request("PUT", _label_path(job_id, index), body={"label": label}))

    def correct_from(
        self,
        lines: Iterable[str],
        *,
        jsonl: bool = False,
        job_id: str | None = None,
        confirm_unchanged: bool = False,
        on_skip: Callable[[int], None] = lambda _rows: None,
        on_unchanged: Callable[[int], None] = lambda _rows: None,
    ) -> list[Correction]:
        """Store the corrections in these lines, at most 1,000: all of them, or none if any row is wrong.

        For the arguments and errors, see `Client.correct_from`.
        """
        found = collect(
            requests_in(
                lines, self.predictions, jsonl=jsonl, job_id=job_id, confirm_unchanged=confirm_unchanged
            )
        )
        if found.problems:
            raise UserError(summarize_problems(found.problems))
        stored = self.correct_all(found.requests.values())
        on_skip(found.skipped)
        on_unchanged(len(found.requests) - len(stored))
        return stored

    def correct_all(self, requests: Iterable[CorrectionRequest]) -> list[Correction]:
        """Store all of these corrections, at most 1,000, or none if any is wrong.

        Raises UserError with one line for each wrong one.
        """
        return self._change(requests, undo=False)

    def undo_all(self, requests: Iterable[CorrectionRequest]) -> list[Correction]:
        """Take back what `correct_all` stored of these, and return it."""
        return self._change(requests, undo=True)

    def _change(self, requests: Iterable[CorrectionRequest], *, undo: bool) -> list[Correction]:
        """Store or remove these corrections in one request. Raises UserError if they are too many."""
        wanted = list(map(_to_row, requests))
        if len(wanted) > _MAX_CORRECTIONS:
            raise UserError(
                f"These are {len(wanted):,} corrections, and the HTTP API takes at most "
                f"{_MAX_CORRECTIONS:,} per request: send them in parts. Nothing is changed."
            )
        if not wanted:
            return []
        answer = self._api.request("POST", "/corrections", body={"corrections": wanted, "undo": undo})
        return list(map(_to_correction, answer["data"]))

    @accept_numpy_numbers
    def undo_correction(self, job_id: str, index: int) -> Correction:
        """Remove the correction of an image, and return the removed correction. Raises NotFound."""
        return _to_correction(self._api.request("DELETE", _label_path(job_id, index)))


class NotInApi(UserError, AttributeError):
    """A method of `Client` that does not work over HTTP."""


def _check_project(project: str | None) -> None:
    """Raise UserError if a project is named: over HTTP, the key has one."""
    if project is not None:
        raise UserError("Over the HTTP API, the project is that of the key: leave out --project.")


def _idempotency_key(key: str | None) -> str:
    """Return a key that makes a repeated request take effect only once; `key` is the user's own."""
    return new_id() if key is None else hashlib.sha256(key.encode()).hexdigest()


def _path(job_id: str, below: str = "") -> str:
    """Return the path of a job's batch, or of something below it. Raises NotFound."""
    if not is_id(job_id):
        raise no_job(job_id)
    return f"/batches/{job_id}{below}"


def _label_path(job_id: str, index: int) -> str:
    if index < 0:
        raise NotFound(f"Job {job_id} has no image {index}: they are counted from 0.")
    return _path(job_id, f"/images/{index}/label")


def _to_status(batch: dict[str, Any]) -> JobStatus:
    return _STATUS.validate_python(batch["job"])


def _to_prediction(result: dict[str, Any]) -> Prediction:
    error = result["error"] or {"code": None, "message": None}
    renamed = {"alternatives": result["top"], "error": error["code"], "detail": error["message"]}
    return Prediction(*((result | renamed)[name] for name in COLUMN_NAMES))


def _to_row(request: CorrectionRequest) -> dict[str, object]:
    return {
        "batch_id": request.job_id,
        "index": request.index,
        "label": request.label,
        "line": request.line or None,
        "confirms": request.confirms,
    }


def _to_correction(found: dict[str, Any]) -> Correction:
    return Correction(
        job_id=found["batch_id"],
        index=found["index"],
        name=found["name"],
        label=found["label"],
        predicted=found["predicted"],
        confidence=found["confidence"],
        model_id=found["model"],
        image_sha256=found["image_sha256"],
        created_at=datetime.fromtimestamp(found["created_at"], UTC),
    )
