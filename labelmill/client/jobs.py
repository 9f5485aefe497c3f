"""Labelmill from Python: what the console command does, without TensorFlow on the path."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy.engine import Row

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import end_job
from jobs.ledger.corrections import Correction, all_corrections
from jobs.ledger.health import Health, model_health
from jobs.ledger.lost_runs import Silence, end_lost_runs, make_way
from jobs.ledger.models import get_model, list_models
from jobs.ledger.naming import job_named, model_named, run_named
from jobs.ledger.pausing import pause_job, resume_job
from jobs.ledger.progress import (
    Filter,
    JobStatus,
    Prediction,
    job_status,
    latest_jobs,
    stream_predictions,
)
from jobs.ledger.promotions import Promotion, StoredVerdict, champion_before, champion_history, roll_back
from jobs.ledger.runs import (
    Run,
    cancel_run,
    classes_learnt,
    epochs_of,
    get_run,
    latest_runs,
    request_run,
    verdict_on,
)
from jobs.ledger.shadows import (
    NO_SHADOW,
    Comparison,
    Disagreed,
    begin_shadow,
    champion_beside,
    compare,
    end_shadow,
    find_shadow,
    first_disagreements,
)
from jobs.ledger.workers import WorkerStatus, list_workers, trainer_is_there
from jobs.limits import ErrorLimits
from jobs.model import Model
from jobs.registry import check_stored
from jobs.schema import JobState
from jobs.settings import Settings
from jobs.store import Store
from labelmill.migrating import open_ledger
from producer.follow import follow
from producer.sources import SourceImage, Sources

if TYPE_CHECKING:
    from jobs.promotion import Verdict
    from jobs.queue import Bell
    from jobs.traces import Tracing
    from labelmill.correcting import Corrector
    from producer.retry import Retried
    from producer.submit import Submitted


#: How often a run that is followed is looked at: an epoch takes seconds.
RUN_LOOK_SECONDS: Final = 0.2


class Client:
    """One connection to one Labelmill. Not safe to share between threads.

    Every method raises Unavailable where the ledger or the store cannot be reached.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Reads LABELMILL_* where no settings are given. Raises SettingsError, LedgerNotReady."""
        self.settings = settings or Settings.load()
        self.ledger: Ledger = open_ledger(self.settings)
        self._bell: Bell | None = None

    def submit(
        self,
        *sources: str | PathLike[str],
        key: str | None = None,
        model: str | None = None,
        by_reference: bool = False,
        error_limits: ErrorLimits | None = None,
        stdin: Iterable[str] | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> str:
        """Submits files, folders, globs, archives, IDX files and URLs as one job; gives back its id.

        See `submission` for what may go wrong.
        """
        images = self.sources(sources, stdin=stdin)
        return self.submission(
            images,
            key=key,
            model=model,
            by_reference=by_reference,
            error_limits=error_limits,
            on_progress=on_progress,
        ).job_id

    def sources(
        self, sources: Iterable[str | PathLike[str]], *, stdin: Iterable[str] | None = None
    ) -> Sources:
        """The images that are named, not read yet. Raises SourceError for what is not there, Unavailable
        where that cannot be told of a URL.
        """
        return Sources(
            [fspath(source) for source in sources],
            stdin=stdin,
            max_bytes=self.settings.max_image_bytes,
            archives=self.settings.archive_limits,
        )

    def submission(
        self,
        images: Iterable[SourceImage],
        *,
        key: str | None = None,
        model: str | None = None,
        by_reference: bool = False,
        error_limits: ErrorLimits | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
        on_wait: Callable[[str], None] = lambda _job_id: None,
    ) -> Submitted:
        """Submits one job. With the `key` of an earlier submission of the same content, gives that one back.
        `model`: the id of the model that is to classify it, in the place of the champion.
        `by_reference`: workers read the images where they are, below the roots that the settings allow.
        `error_limits`: stop the job early, as failed, where it has more errors than these. `on_wait` is
        called with the id of a job that has the key and is still being submitted, which is waited for.

        Raises SourceError where there is no image, more than the settings allow, or one that cannot be a
        reference; NotFound where there is no such model, or none yet, Conflict where the key was used for
        other content, or for another model than the one that is named, UserError where it is none; Stopped
        where somebody stopped the job meanwhile.
        """
        from jobs.references import Roots
        from producer.submit import submit

        with self._ringing() as bell:
            return submit(
                images,
                ledger=self.ledger,
                store=Store(self.settings.store),
                bell=bell,
                chunk_images=self.settings.chunk_images,
                key=key,
                model_id=model,
                by_reference=Roots(self.settings.reference_roots) if by_reference else None,
                error_limits=error_limits,
                limits=self.settings.job_limits,
                on_progress=on_progress,
                on_wait=on_wait,
                tracing=self._tracing,
            )

    @cached_property
    def _tracing(self) -> Tracing | None:
        from jobs.traces import open_tracing

        return open_tracing("labelmill-producer")

    @contextmanager
    def _ringing(self) -> Iterator[Bell]:
        # Imported where it is needed: Celery takes a sixth of a second, and most commands only read.
        from jobs.queue import Bell, make_app

        # Kept: connecting takes as long as all the rest of submitting one image.
        if self._bell is None:
            self._bell = Bell(make_app(self.settings))
        yield self._bell.anew()

    @property
    def broker_was_away(self) -> bool:
        """Whether the latest submission could not send its messages; a worker's reconciler will."""
        return self._bell is not None and self._bell.silent

    @property
    def broker_trouble(self) -> str:
        """Why it could not, in a few words; empty where it could."""
        return self._bell.reason if self._bell is not None else ""

    def job_id(self, typed: str) -> str:
        """The id of the job that is meant by it, or by a beginning of it of six or more characters; what was
        typed where there is none. Raises Conflict where it may be more than one, NotFound where it is less.
        """
        with self.ledger.reading() as connection:
            return job_named(connection, typed)

    def status(self, job_id: str) -> JobStatus:
        """Where the job stands. Raises NotFound."""
        with self.ledger.reading() as connection:
            return job_status(connection, job_id)

    def jobs(self, *, limit: int = 20, state: JobState | None = None) -> list[JobStatus]:
        """The latest jobs, newest first."""
        with self.ledger.reading() as connection:
            return latest_jobs(connection, limit=limit, state=state)

    def workers(self) -> list[WorkerStatus]:
        """The workers and trainers that were seen within a day, by queue and host."""
        with self.ledger.reading() as connection:
            return list_workers(connection)

    def trainer_is_there(self) -> bool:
        """Whether a trainer was seen lately."""
        with self.ledger.reading() as connection:
            return trainer_is_there(connection)

    def follow(self, job_id: str, *, timeout: float | None = None) -> Iterator[JobStatus]:
        """The job's status again and again until it has finished. Raises NotFound, NotFinished."""
        return follow(self.ledger, job_id, timeout=timeout)

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobStatus:
        """Waits for the end, at most `timeout` seconds. Raises NotFound, NotFinished."""
        for status in self.follow(job_id, timeout=timeout):
            if status.finished:
                break
        return status

    def cancel(self, job_id: str) -> JobStatus:
        """Stops the job; what is classified stays (of one with a key that was still being submitted, until
        something is submitted under that key again). Raises NotFound, or Conflict where it had finished.
        """
        with self.ledger.transaction() as connection:
            stopped = end_job(connection, job_id, JobState.CANCELLED)
            status = job_status(connection, job_id)
        if not stopped:
            raise _had_finished(status)
        return status

    def pause(self, job_id: str) -> JobStatus:
        """Holds the job up; chunks that are being worked on still bring in their outcomes. Pausing twice is
        pausing once. Raises NotFound, or Conflict where it had finished.
        """
        with self.ledger.transaction() as connection:
            paused = pause_job(connection, job_id)
            status = job_status(connection, job_id)
        if not paused:
            raise _had_finished(status)
        return status

    def resume(self, job_id: str) -> JobStatus:
        """Lets a paused job go on. Raises NotFound, or Conflict where it is not paused."""
        from jobs.queue import MAX_OUTSTANDING

        with self.ledger.transaction() as connection:
            waiting = resume_job(connection, job_id, limit=MAX_OUTSTANDING)
            status = job_status(connection, job_id)
        if waiting is None:
            if status.finished:
                raise _had_finished(status)
            raise Conflict(f"Job {job_id} is not paused: it is {status.state}.")
        with self._ringing() as bell:
            bell.ring_for(waiting)
        return status

    def retry(
        self,
        job_id: str,
        *,
        failed_only: bool = False,
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> Retried:
        """Submits those images of a finished job that have no label, as a job under the same model; with
        `failed_only` only those that got an error, not those that a stopped job never came to.

        Raises NotFound; Conflict where the job has not finished or its payloads were purged, if only halfway
        through.
        """
        from producer.retry import retry

        with self._ringing() as bell:
            return retry(
                job_id,
                failed_only=failed_only,
                ledger=self.ledger,
                store=Store(self.settings.store),
                bell=bell,
                chunk_images=self.settings.chunk_images,
                on_progress=on_progress,
                tracing=self._tracing,
            )

    def predictions(
        self,
        job_id: str,
        *,
        label: str | None = None,
        below: float | None = None,
        errors: bool = False,
        name: str | None = None,
        after: int = -1,
        limit: int | None = None,
    ) -> Iterator[Prediction]:
        """The job's predictions in index order, read a page at a time.

        Only those with this `label`; with a confidence `below`; that are `errors`; whose `name` matches the
        glob; with an index over `after`; at most `limit` of them. Raises NotFound; UserError for a label that
        is no class of the job's model; Conflict at the end where the job was purged as a whole meanwhile:
        what came until then is a part.
        """
        with self.ledger.reading() as connection:
            status = job_status(connection, job_id)
            if label is not None:
                get_model(connection, status.model).check_class(label)
        wanted = Filter(label=label, below=below, errors=errors, name=name)
        return stream_predictions(self.ledger, job_id, wanted, after=after, limit=limit)

    def models(self) -> list[Model]:
        """All models, newest first."""
        with self.ledger.reading() as connection:
            return list_models(connection)

    def model(self, typed: str | None = None) -> Model:
        """The model that is meant by its id, a beginning of it of six or more characters, or an alias; left
        out: the champion, which new jobs are classified by. Raises NotFound where there is none, Conflict
        where it may be more than one.
        """
        with self.ledger.reading() as connection:
            return model_named(connection, typed)

    def promote(self, model_id: str, *, force: bool = False) -> Verdict:
        """Makes the model the champion where the gate passes it, or with `force` whatever the gate says; the
        verdict says which. Jobs under way stay with the model they are pinned to.

        Raises NotFound; Conflict where it is the champion already, or was not evaluated; ModelRefused where
        its file is gone from the store or is another one.
        """
        from jobs.promotion import judge_and_promote

        with self.ledger.reading() as connection:
            model = get_model(connection, model_id)
        check_stored(Store(self.settings.store), model)
        with self.ledger.transaction() as connection:
            return judge_and_promote(
                connection, self.settings.gate_limits, model_id, how="promote", force=force
            )

    def rollback(self) -> Promotion:
        """Makes the champion before this one the champion again; once more, the one before that.

        Raises Conflict where there was none before; ModelRefused where its file is gone from the store or is
        another one.
        """
        with self.ledger.reading() as connection:
            model = get_model(connection, champion_before(connection))
        check_stored(Store(self.settings.store), model)
        with self.ledger.transaction() as connection:
            return roll_back(connection, model.id)

    def promotions(self, *, limit: int | None = None) -> list[Promotion]:
        """The moves of the champion, the latest first."""
        with self.ledger.reading() as connection:
            return champion_history(connection, limit=limit)

    def retrain(
        self,
        *,
        architecture: str | None = None,
        profile: str | None = None,
        seed: int | None = None,
        force: bool = False,
        on_wait: Callable[[Run], None] = lambda _run: None,
    ) -> str:
        """Asks for a training run; gives back its id. What is left out is as the settings say, the seed
        another one each time. `force`: its model is promoted whatever the gate says.

        Raises Conflict where a run is under way. Where the trainer of that one is not heard of any more, some
        seconds tell whether it is dead: `on_wait` is told of the run first.
        """
        from worker.learning.recipes import recipe_for

        recipe = recipe_for(
            architecture or self.settings.retrain_architecture,
            profile or self.settings.retrain_profile,
            seed=secrets.randbelow(2**31) if seed is None else seed,
        )
        run_id = new_id()
        make_way(self.ledger, on_wait=on_wait)
        with self.ledger.transaction() as connection:
            request_run(connection, run_id, recipe=replace(recipe, force=force).to_json())
        self.ring_for_run(run_id)
        return run_id

    def ring_for_run(self, run_id: str) -> None:
        """Sends the run's message, if there is a broker by now."""
        with self._ringing() as bell:
            bell.ring_for_run(run_id)

    def run_id(self, typed: str) -> str:
        """The id of the training run that is meant, as `job_id` finds a job's."""
        with self.ledger.reading() as connection:
            return run_named(connection, typed)

    def run(self, run_id: str) -> Run:
        """Where the training run stands. Raises NotFound."""
        with self.ledger.reading() as connection:
            return get_run(connection, run_id)

    def runs(self, *, limit: int = 20) -> list[Run]:
        """The latest training runs, newest first."""
        with self.ledger.reading() as connection:
            return latest_runs(connection, limit=limit)

    def epochs(self, run_id: str) -> list[Row[Any]]:
        """The run's epochs so far: epoch, loss, accuracy, val_loss, val_accuracy, seconds."""
        with self.ledger.reading() as connection:
            return epochs_of(connection, run_id)

    def verdict_on(self, run_id: str) -> StoredVerdict | None:
        """What the gate said of the model that the run made."""
        with self.ledger.reading() as connection:
            return verdict_on(connection, run_id)

    def follow_run(self, run_id: str) -> Iterator[Run]:
        """The run again and again until it has finished. Raises NotFound.

        Where its trainer vanished it is ended here: nobody else may be there to see to it.
        """
        silence = Silence()
        while True:
            run = self.run(run_id)
            if run.silent_since is not None:
                with self.ledger.transaction() as connection:
                    end_lost_runs(connection, silence)
                run = self.run(run_id)
            yield run
            if run.finished:
                return
            time.sleep(RUN_LOOK_SECONDS)

    def cancel_run(self, run_id: str) -> Run:
        """Stops the run; nothing it did counts. Raises NotFound, or Conflict where it had finished."""
        with self.ledger.transaction() as connection:
            return cancel_run(connection, run_id)

    def correct(self, job_id: str, index: int, label: str) -> Correction:
        """Says what an image really is; of one that was corrected before, the new label counts. It is learnt
        at the next retraining.

        Raises NotFound where there is no such image, or no outcome of it; UserError where the label is no
        class of the job's model; Conflict where the image was purged, or stopped its worker.
        """
        from labelmill.correction_files import Wish

        return self._corrector().correct(Wish(job_id, index, label))

    def correct_from(
        self, lines: Iterable[str], *, jsonl: bool = False, job_id: str | None = None
    ) -> list[Correction]:
        """Corrects what the lines say: CSV with the columns job, index and label, or a JSON object with these
        a line; `job_id` is the job of those that name none. All of it is stored or, where a row is wrong,
        nothing. Raises UserError that names each.
        """
        return self._corrector().correct_from(lines, jsonl=jsonl, job_id=job_id)

    def undo_correction(self, job_id: str, index: int) -> Correction:
        """Takes a correction back; gives back what it was. Raises NotFound."""
        return self._corrector().undo(job_id, index)

    def corrections(self) -> list[Correction]:
        """All corrections, the latest first."""
        with self.ledger.reading() as connection:
            return all_corrections(connection)

    def classes_learnt(self) -> tuple[str, ...] | None:
        """The classes of the model that was trained last, which a correction has to be of to be learnt; None
        where none was.
        """
        with self.ledger.reading() as connection:
            return classes_learnt(connection)

    def _corrector(self) -> Corrector:
        from labelmill.correcting import Corrector

        return Corrector(self.ledger, Store(self.settings.store), self.settings)

    def health(self, model_id: str | None = None) -> Health:
        """How a model does since it was evaluated; left out: the champion. Raises NotFound."""
        with self.ledger.reading() as connection:
            return model_health(connection, model_id)

    def begin_shadow(self, model_id: str) -> Model:
        """Has the model classify a share of the chunks as well, in the shadow of their jobs' model: nobody
        gets its labels. It takes the place of the one that does so now.

        Raises NotFound; Conflict where there is no champion to compare it with; ModelRefused where its file
        is gone from the store or is another one.
        """
        with self.ledger.reading() as connection:
            model = get_model(connection, model_id)
        # Else each worker would find out, chunk by chunk, and only its log would say so.
        check_stored(Store(self.settings.store), model)
        with self.ledger.transaction() as connection:
            return begin_shadow(connection, model_id)

    def end_shadow(self) -> None:
        """Ends that; what was counted stays. Raises Conflict where no model is in the shadow."""
        with self.ledger.transaction() as connection:
            if not end_shadow(connection):
                raise Conflict(NO_SHADOW)

    def shadow(self, *, limit: int = 20) -> tuple[Comparison, list[Disagreed]]:
        """What came of the model in the shadow so far, beside the champion, and the first images that it
        takes for something else, those of the latest jobs first. Raises Conflict where there is none.
        """
        with self.ledger.reading() as connection:
            model_id = find_shadow(connection)
            if model_id is None:
                raise Conflict(NO_SHADOW)
            champion = champion_beside(connection).id
            return (
                compare(connection, model_id, beside=champion),
                first_disagreements(connection, model_id, beside=champion, limit=limit),
            )

    def close(self) -> None:
        """Gives the connections back."""
        self.ledger.close()
        if self._bell is not None:
            self._bell.close()
        tracing = self.__dict__.get("_tracing")  # not made only to be closed
        if tracing is not None:
            tracing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _had_finished(status: JobStatus) -> Conflict:
    return Conflict(f"Job {status.id} had finished before: it is {status.state}.")
