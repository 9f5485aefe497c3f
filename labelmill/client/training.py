"""The client's methods for training: retrain, and follow runs."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.engine import Connection, Row

from jobs.ids import new_id
from jobs.ledger.jobs.queries import full_id
from jobs.ledger.learning.backbones import get_backbone
from jobs.ledger.learning.datasets import get_version
from jobs.ledger.learning.models import StoredVerdict, model_to_start_from
from jobs.ledger.learning.runs import (
    FailureDetector,
    Run,
    cancel_run,
    classes_learnt,
    clear_expired_run,
    end_lost_runs,
    epochs_of,
    get_run,
    latest_runs,
    request_run,
    verdict_on,
)
from jobs.ledger.learning.schedules import find_schedule
from jobs.ledger.workers import workers_by_queue
from jobs.messages import RETRAIN_QUEUE
from jobs.models.dataset import MNIST, check_name
from jobs.models.training_request import TrainingRequest
from labelmill.client.corrections import CorrectionMethods
from labelmill.client.installation import accept_numpy_numbers
from worker.learning.recipes import Recipe, recipe_of

#: How often `follow_run` reads the run: an epoch takes seconds.
RUN_POLL_SECONDS: Final = 0.2


class TrainingMethods(CorrectionMethods):
    """The client's methods for training runs."""

    @accept_numpy_numbers
    def retrain(
        self,
        request: TrainingRequest | None = None,
        *,
        keep_champion: bool = False,
        default_minutes: float | None = None,
        input_file_id: str | None = None,
        delete_input: bool = False,
        on_wait: Callable[[Run], None] = lambda _run: None,
        **options: Any,
    ) -> str:
        """Request a training run and return its id. A trainer executes it; see `follow_run`.

        - `request`: what to train, and how. What it leaves out is that of the dataset's schedule, otherwise
          chosen from the data.
        - `options`: fields of TrainingRequest, instead of a request.
        - `keep_champion`: promote the new model only if there is no champion.
        - `default_minutes`: train for at most this time unless the request, the schedule or a profile says
          how long.
        - `input_file_id`: an uploaded archive. The run first adds its images to the dataset, which need not
          exist.
        - `delete_input`: delete the archive when its images have been read.
        - `on_wait`: called with the active run if its trainer sends no heartbeats, before this method waits
          some seconds for one.

        Raises UserError if the options do not fit together, NotFound if there is no such dataset or model,
        Conflict if another run on this dataset is active. Example::

            run_id = client.retrain(dataset="birds", architecture="cnn", max_minutes=10)
        """
        request = request or TrainingRequest.of(**options)
        recipe = replace(
            self._recipe_of(request, adds_images=input_file_id is not None), keep_champion=keep_champion
        )
        if recipe.max_minutes is None and recipe.is_adaptive:
            recipe = replace(recipe, max_minutes=default_minutes)
        run_id = new_id()
        clear_expired_run(self.ledger, request.dataset, on_wait=on_wait)
        with self.ledger.transaction() as connection:
            request_run(
                connection,
                run_id,
                recipe=recipe.to_json(),
                dataset=request.dataset,
                input_file_id=input_file_id,
                delete_input=delete_input,
            )
            self.on_change(connection, "request run", run_id)
        self.wake_trainer(run_id)
        return run_id

    def _recipe_of(self, request: TrainingRequest, *, adds_images: bool) -> Recipe:
        with self.ledger.reading() as connection:
            schedule = find_schedule(connection, request.dataset)
            return self.check_request(
                connection,
                request.with_defaults(schedule.request) if schedule else request,
                adds_images=adds_images,
            )

    def check_request(
        self, connection: Connection, request: TrainingRequest, *, adds_images: bool = False
    ) -> Recipe:
        """Return the recipe for a request. A run that adds images needs no dataset, only a name for it.

        Raises UserError if its options do not fit together, NotFound if there is no such dataset or model.
        """
        if adds_images:
            check_name(request.dataset)
        else:
            get_version(connection, request.dataset)
        recipe = recipe_of(request)
        if recipe.start is not None:
            recipe = replace(recipe, start=full_id(connection, "model", recipe.start))
        if recipe.backbone is not None:
            get_backbone(connection, recipe.backbone)
        if recipe.architecture == "finetune":
            model_to_start_from(connection, request.dataset, recipe.start)
        return recipe

    def wake_trainer(self, run_id: str) -> None:
        """Send the run's message again, for a broker that was started after `retrain`."""
        self._broker().request_run(run_id)

    def trainer_is_running(self) -> bool:
        """Return whether a trainer has sent a heartbeat recently."""
        with self.ledger.reading() as connection:
            return RETRAIN_QUEUE in workers_by_queue(connection)

    def run_id(self, typed: str) -> str:
        """Return the full id of a training run, as `job_id` does for jobs."""
        with self.ledger.reading() as connection:
            return full_id(connection, "training run", typed)

    def run(self, run_id: str) -> Run:
        """Return the training run and its present state. Raises NotFound."""
        with self.ledger.reading() as connection:
            return get_run(connection, run_id)

    @accept_numpy_numbers
    def runs(self, *, limit: int = 20) -> list[Run]:
        """Return the latest training runs, newest first."""
        with self.ledger.reading() as connection:
            return latest_runs(connection, limit=limit)

    def epochs(self, run_id: str) -> list[Row[Any]]:
        """Return the run's epochs so far: epoch, loss, accuracy, val_loss, val_accuracy, seconds."""
        with self.ledger.reading() as connection:
            return epochs_of(connection, run_id)

    def verdict_on(self, run_id: str) -> StoredVerdict | None:
        """Return the gate's verdict on the model that the run trained, or None."""
        with self.ledger.reading() as connection:
            return verdict_on(connection, run_id)

    def follow_run(self, run_id: str) -> Iterator[Run]:
        """Yield the run repeatedly until it has finished. Raises NotFound.

        If its trainer vanishes, this method ends the run, because no other process may be there to do so.
        """
        detector = FailureDetector()
        while True:
            run = self.run(run_id)
            if run.silent_since is not None:
                with self.ledger.transaction() as connection:
                    end_lost_runs(connection, detector)
                run = self.run(run_id)
            yield run
            if run.finished:
                return
            time.sleep(RUN_POLL_SECONDS)

    def cancel_run(self, run_id: str, *, by: str | None = None) -> Run:
        """Stop the run and return it. A cancelled run changes nothing.

        - `by`: who stops it, as the run will say. Default: this user and machine.

        Raises NotFound, and Conflict if the run had already finished.
        """
        with self.ledger.transaction() as connection:
            self.on_change(connection, "cancel run", run_id)
            return cancel_run(connection, run_id, by=by or _user())

    def classes_learnt(self, *, dataset: str = MNIST) -> tuple[str, ...] | None:
        """Return the classes of the dataset's latest trained model, or None if no run has made one.

        The next training run skips corrections with other labels, unless its data has other classes.
        """
        with self.ledger.reading() as connection:
            return classes_learnt(connection, dataset)


def _user() -> str:
    """Return the name of this process's user and of the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"user {os.getuid()}"
    return f"{user} on {socket.gethostname()}"
