"""The remote client's methods for models, training runs, datasets and workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from jobs.ledger.learning.health import Health
from jobs.ledger.learning.models import Promotion
from jobs.ledger.learning.promotion import Verdict
from jobs.ledger.learning.runs import Run
from jobs.ledger.workers import WorkerStatus
from jobs.models.dataset import MNIST, DatasetVersion
from jobs.models.model import Model
from labelmill.client.http import Api
from labelmill.client.installation import accept_numpy_numbers
from labelmill.client.training import RUN_POLL_SECONDS

T = TypeVar("T")

#: The most runs that the API returns at a time.
_MAX_RUNS: Final = 100


class RemoteModelMethods:
    """The methods of `Client` for models, training runs, datasets and workers, over the HTTP API.

    Results and errors are those of `Client`. What changes something needs a key with the role `admin`.
    """

    _api: Api

    def models(self, *, dataset: str | None = None) -> list[Model]:
        """Return the models of a dataset, by default of all datasets, newest first."""
        return [_details(Model, each) for each in self._listed("/models", dataset=dataset)]

    def model(self, name: str | None = None, *, dataset: str | None = None) -> Model:
        """Return the model with this id, first characters of an id, or alias; by default the champion.

        Aliases are those of the dataset, by default of `mnist`. Raises NotFound; Conflict if several models
        match, or if it belongs to another dataset than the given one.
        """
        found = self._api.request("GET", _model_path(name), query={"dataset": dataset})
        return _details(Model, found)

    def model_id(self, typed: str | None = None, *, dataset: str | None = None) -> str:
        """Return a model's full id, given the first characters of it or an alias; by default the champion's.

        Raises NotFound; Conflict if several models match, or if it is not a model of `dataset`.
        """
        found: str = self._api.request("GET", _model_path(typed), query={"dataset": dataset})["id"]
        return found

    def health(self, model: str | None = None, *, dataset: str | None = None) -> Health:
        """Return how a model (default: the dataset's champion) has performed since it was evaluated."""
        found = self._api.request("GET", _model_path(model, "/health"), query={"dataset": dataset})
        return _details(Health, found)

    def promote(self, model: str, *, force: bool = False) -> Verdict:
        """Make the model the champion if it passes the gate, and return the gate's verdict.

        For `force` and the errors, see `Client.promote`.
        """
        found = self._api.request("POST", _model_path(model, "/promote"), body={"force": force})
        return _details(Verdict, found)

    def rollback(self, *, dataset: str = MNIST) -> Promotion:
        """Make the dataset's previous champion the champion again, and return this promotion.

        Errors are those of `Client.rollback`. If the answer is lost, Unavailable is raised without a second
        try, which could go back one champion further.
        """
        found = self._api.request("POST", "/models/rollback", body={"dataset": dataset}, repeat=False)
        promotion: Promotion = _adapter(Promotion).validate_python(found["promotion"])
        return promotion

    @accept_numpy_numbers
    def retrain(
        self,
        *,
        dataset: str = MNIST,
        architecture: str | None = None,
        profile: str | None = None,
        start: str | None = None,
        size: int | None = None,
        augment: str | None = None,
        max_minutes: float | None = None,
        seed: int | None = None,
        force: bool = False,
        on_wait: Callable[[Run], None] = lambda _run: None,  # noqa: ARG002 -- as `Client.retrain`
    ) -> str:
        """Request a training run and return its id. For the arguments and errors, see `Client.retrain`."""
        body = {
            "dataset": dataset,
            "architecture": architecture,
            "profile": profile,
            "start": start,
            "size": size,
            "augment": augment,
            "max_minutes": max_minutes,
            "seed": seed,
            "force": force,
        }
        run_id: str = self._api.request("POST", "/runs", body=body)["id"]
        return run_id

    @accept_numpy_numbers
    def runs(self, *, limit: int = 20) -> list[Run]:
        """Return the latest training runs, newest first; at most 100."""
        return [_details(Run, each) for each in self._listed("/runs", limit=min(limit, _MAX_RUNS))]

    def run(self, run_id: str) -> Run:
        """Return the training run and its present state. Raises NotFound."""
        return _details(Run, self._api.request("GET", _run_path(run_id)))

    def run_id(self, typed: str) -> str:
        """Return the full id of a training run, as `job_id` does for jobs."""
        return self.run(typed).id

    def follow_run(self, run_id: str) -> Iterator[Run]:
        """Yield the run repeatedly until it has finished. Raises NotFound."""
        while True:
            run = self.run(run_id)
            yield run
            if run.finished:
                return
            time.sleep(RUN_POLL_SECONDS)

    def cancel_run(self, run_id: str) -> Run:
        """Stop the run and return it. A cancelled run changes nothing.

        Raises NotFound, and Conflict if the run had already finished.
        """
        return _details(Run, self._api.request("POST", _run_path(run_id, "/cancel")))

    def datasets(self) -> list[DatasetVersion]:
        """Return the latest version of each dataset, in the order of their names, without `mnist`."""
        return [_details(DatasetVersion, each) for each in self._listed("/datasets")]

    def workers(self) -> list[WorkerStatus]:
        """Return the workers and trainers seen in the last 24 hours, ordered by queue and host."""
        return [_details(WorkerStatus, each) for each in self._listed("/workers")]

    def _listed(self, path: str, **query: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._api.request("GET", path, query=query)["data"]
        return found


def _details(kind: type[T], answer: dict[str, Any]) -> T:
    """Return what `Client` would return, from an answer about it."""
    found: T = _adapter(kind).validate_python(answer["details"])  # type: ignore[arg-type]  # it is hashable
    return found


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    # Made when it is needed: each takes a millisecond or two, and a command needs one at most.
    return TypeAdapter(kind)


def _model_path(name: str | None, below: str = "") -> str:
    return f"/models/{_quoted(name or 'champion')}{below}"


def _run_path(run_id: str, below: str = "") -> str:
    return f"/runs/{_quoted(run_id)}{below}"


def _quoted(part: str) -> str:
    return quote(part.strip(), safe="", errors="surrogateescape")
