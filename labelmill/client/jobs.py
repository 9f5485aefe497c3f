"""The client's methods for jobs: submit, follow, control, retry, and read predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ledger.api.batches import repeat_batch
from jobs.ledger.api.projects import check_project
from jobs.ledger.jobs.control import end_job, pause_job, resume_job
from jobs.ledger.jobs.filters import Filter, FilterKeywords
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import (
    PAGE_ROWS,
    JobStatus,
    full_id,
    job_status,
    latest_jobs,
    model_named,
    stream_predictions,
)
from jobs.ledger.learning.corrections import corrected_labels
from jobs.ledger.learning.known_labels import manifest_labels
from jobs.ledger.learning.models import get_model
from jobs.ledger.workers import WorkerStatus, list_workers
from jobs.options import JobKeywords, JobOptions
from jobs.schema import JobState
from labelmill.client.installation import Installation, accept_numpy_numbers
from producer.sources import SourceImage

if TYPE_CHECKING:
    from labelmill.labels.labelled_jobs import LabelledEvaluation
    from producer.submit import Submitted, Submitter


class JobMethods(Installation):
    """The client's methods for jobs."""

    def submission(
        self,
        images: Iterable[SourceImage],
        *,
        by_reference: bool = False,
        on_progress: Callable[[int], None] = lambda _images: None,
        on_wait: Callable[[str], None] = lambda _job_id: None,
        **options: Unpack[JobKeywords],
    ) -> Submitted:
        """Submit images as one job. Return the job's id, its size, and whether it is new.

        The images come from `sources` or from your own code. They are streamed: memory holds one chunk. When
        this returns, the job is committed in the ledger.

        - `by_reference`: store the images' locations instead of their bytes. Workers then read the images
          themselves, below LABELMILL_REFERENCE_ROOTS.
        - `on_progress`: called with the number of images stored so far.
        - `on_wait`: called with the id of a job that another producer is still submitting under the key.
        - `key`, `model`, `dataset`, `priority` and the other fields of `jobs.options.JobOptions`.

        Raises SourceError if there are no images, more than the settings allow, or one that cannot be
        submitted by reference; NotFound if the project or the model does not exist, or there is no champion
        yet; UserError if an option is out of range; Conflict if the key was used for other content, another
        model, dataset or `top_k`, if several models match `model`, if the model does not belong to `dataset`,
        or if the object store is not the one that the workers use; Stopped if the job is stopped during the
        submission.
        """
        from jobs.network.references import Roots
        from producer.submit import submit

        wanted = JobOptions(**options)
        if wanted.model is not None:
            wanted = replace(wanted, model=self.model_id(wanted.model, dataset=wanted.dataset))
        return submit(
            self._submitter(
                on_progress=on_progress,
                on_wait=on_wait,
                on_seal=lambda connection, new_id: self.on_change(connection, "submit job", new_id),
            ),
            images,
            wanted,
            by_reference=Roots(self.settings.reference_roots) if by_reference else None,
            limits=self.settings.job_limits,
        )

    def _submitter(self, **callbacks: Any) -> Submitter:
        from producer.submit import Submitter

        return Submitter(
            self.ledger,
            self.store,
            self._broker(),
            self.settings.chunk_images,
            shadow_share=self.settings.shadow_share,
            tracer=self._tracing.tracer,
            **callbacks,
        )

    def job_id(self, typed: str) -> str:
        """Return the full id of a job, given its id or the first characters of it (at least six).

        Returns `typed` itself if no job matches. Raises Conflict if several jobs match, NotFound if `typed`
        is too short.
        """
        with self.ledger.reading() as connection:
            return full_id(connection, "job", typed)

    def status(self, job_id: str) -> JobStatus:
        """Return the job's state, counts, model, rate (images per second) and times. Raises NotFound."""
        with self.ledger.reading() as connection:
            return job_status(connection, job_id)

    def model_id(self, typed: str | None = None, *, dataset: str | None = None) -> str:
        """Return a model's full id, given the first characters of it or an alias; by default the champion's.

        Raises NotFound; Conflict if several models match, or if it is not a model of `dataset`.
        """
        with self.ledger.reading() as connection:
            return model_named(connection, typed, dataset).id

    @accept_numpy_numbers
    def jobs(
        self, *, limit: int = 20, state: JobState | None = None, project: str | None = None
    ) -> list[JobStatus]:
        """Return the latest jobs, newest first; with `state`, only jobs in this state.

        With `project`, return only its jobs. Raises NotFound if there is no such project.
        """
        with self.ledger.reading() as connection:
            check_project(connection, project)
            return latest_jobs(connection, limit=limit, state=state, project=project)

    def workers(self) -> list[WorkerStatus]:
        """Return the workers and trainers seen in the last 24 hours, ordered by queue and host."""
        with self.ledger.reading() as connection:
            return list_workers(connection)

    def cancel(self, job_id: str) -> JobStatus:
        """Stop the job and return its status. Images that were already classified keep their predictions.

        If the job was still being submitted under a key, the next submission under that key replaces it.
        Raises NotFound, and Conflict if the job had already finished.
        """
        with self.ledger.transaction() as connection:
            stopped = end_job(connection, job_id, JobState.CANCELLED)
            status = job_status(connection, job_id)
            if stopped:
                self.on_change(connection, "cancel job", job_id)
        if not stopped:
            raise _had_finished(status)
        return status

    def pause(self, job_id: str) -> JobStatus:
        """Pause the job and return its status. Chunks that workers have begun are still recorded.

        Pausing a paused job is not an error. Raises NotFound, and Conflict if the job had already finished.
        """
        with self.ledger.transaction() as connection:
            paused = pause_job(connection, job_id)
            status = job_status(connection, job_id)
            if paused:
                self.on_change(connection, "pause job", job_id)
        if not paused:
            raise _had_finished(status)
        return status

    def resume(self, job_id: str) -> JobStatus:
        """Resume a paused job and return its status. Raises NotFound, and Conflict if it is not paused."""
        from jobs.queue import MAX_WAITING

        with self.ledger.transaction() as connection:
            due = resume_job(connection, job_id, limit=MAX_WAITING)
            status = job_status(connection, job_id)
            if due is not None:
                self.on_change(connection, "resume job", job_id)
        if due is None:
            if status.finished:
                raise _had_finished(status)
            raise Conflict(f"Job {job_id} is not paused: it is {status.state}.")
        self._broker().wake_up(due)
        return status

    def retry(
        self,
        job_id: str,
        *,
        failed_only: bool = False,
        key: str | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
        on_wait: Callable[[str], None] = lambda _job_id: None,
    ) -> Submitted | None:
        """Submit the images of a finished job that have no label, as a new job with the same model.

        Returns the new submission, or None if there is nothing to retry. An image that could not be read when
        it was first submitted gets its error again. With `failed_only`, leave out images that a stopped job
        never reached. With `key`, calling it again returns the same new job; `on_wait` is called before
        waiting for one that is still being submitted. Raises NotFound, and Conflict if the job has not
        finished, its payloads were purged, or it was stopped before all its images were read and the rest
        cannot be read any more.
        """
        from producer.resubmit import retry

        def on_seal(connection: Connection, retry_id: str) -> None:
            repeat_batch(connection, job_id, retry_id)
            self.on_change(connection, "retry job", job_id)

        submitter = self._submitter(on_progress=on_progress, on_wait=on_wait, on_seal=on_seal)
        return retry(submitter, self.settings, job_id, failed_only=failed_only, key=key)

    @accept_numpy_numbers
    def predictions(
        self, job_id: str, *, after: int = -1, limit: int | None = None, **conditions: Unpack[FilterKeywords]
    ) -> Iterator[Prediction]:
        """Yield the job's predictions in index order, reading the ledger one page at a time.

        If several conditions are given, all must hold:

        - `label`: only images with this label.
        - `below`: only labels with a confidence (0 to 1) below this.
        - `at_least`: only labels with this confidence or more.
        - `errors`: only images that got an error.
        - `error`: only images with this error code.
        - `name`: only images whose whole name matches this glob.
        - `truth`: only images of this true class: that of their correction, otherwise their
          label in the job's manifest, otherwise their folder's name.
        - `mistakes`: only images whose label is not their true class, if that is a class of the model.
        - `after`: only images with an index above this.
        - `limit`: at most this many.

        Raises NotFound if the job does not exist; UserError if `label` or `truth` is not a class of the job's
        model; Conflict, at the end, if the job was purged meanwhile and predictions are therefore missing.
        """
        classes: tuple[str, ...] = ()
        labels = [each for each in (conditions.get("label"), conditions.get("truth")) if each is not None]
        with self.ledger.reading() as connection:
            status = job_status(connection, job_id)
            if labels or conditions.get("mistakes"):
                model = get_model(connection, status.model)
                for label in labels:
                    model.check_class(label)
                classes = model.classes
        wanted = Filter(**conditions, classes=classes)
        return stream_predictions(self.ledger, job_id, wanted, after=after, limit=limit)

    def evaluate_job(
        self, job_id: str, *, on_progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> LabelledEvaluation:
        """Compare a job's labels with those of its manifest, or with the names of its images' folders.

        Nothing is stored. Only images count whose known label is a class of the job's model. A correction
        replaces it. An image with an error counts as wrong. Images that were corrected before the model's
        training run are left out. Needs no TensorFlow.

        - `on_progress`: called with the number of predictions read, and the number of images.

        Raises NotFound if the job does not exist, UserError if no image has such a label, Conflict if the
        job was purged meanwhile.
        """
        from labelmill.labels.labelled_jobs import compare_with_known
        from labelmill.labels.learnt_images import learnt_images

        with self.ledger.reading() as connection:
            status = job_status(connection, job_id)
            model = get_model(connection, status.model)
            known = manifest_labels(connection, job_id)
            corrected = corrected_labels(connection, job_id)

        def reported() -> Iterator[Prediction]:
            done = 0
            for done, prediction in enumerate(stream_predictions(self.ledger, job_id, Filter()), 1):
                if done % PAGE_ROWS == 0:
                    on_progress(done, status.total)
                yield prediction
            on_progress(done, status.total)

        learnt = learnt_images(self.ledger, self.store, self.settings, job_id, model.id)
        return compare_with_known(reported(), model, known, corrected, learnt)

    def job_report(self, job_id: str, evaluation: LabelledEvaluation | None = None) -> str:
        """Return an HTML report on how well a job's labels agree with the known ones of its images.

        The page needs no other file. `evaluation` is what `evaluate_job` returned; without it, the job is
        evaluated. Needs Pillow, and reads the images of the worst mistakes from the store. Raises what
        `evaluate_job` raises.
        """
        # Imported here: importing the template engine takes as long as a whole command.
        from labelmill.labels.job_images import thumbnails
        from labelmill.reporting.labelled_job_page import render_labelled

        found = evaluation or self.evaluate_job(job_id)
        indices = [mistake.index for mistake in found.mistakes]
        shown = thumbnails(self.ledger, self.store, self.settings, job_id, indices)
        return render_labelled(job_id, found, shown)


def _had_finished(status: JobStatus) -> Conflict:
    return Conflict(f"Job {status.id} has already finished: it is {status.state}.")
