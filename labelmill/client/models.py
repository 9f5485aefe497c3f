"""The client's methods for models: register, evaluate, report, promote, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike

from jobs.errors import Conflict, ModelRefused
from jobs.evaluation import Evaluation
from jobs.ledger.health import Health, model_health
from jobs.ledger.models import (
    Promotion,
    StoredEvaluation,
    StoredVerdict,
    champion_before,
    champion_history,
    find_evaluation,
    find_verdict,
    get_model,
    list_models,
    roll_back,
)
from jobs.ledger.queries import model_named
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
from jobs.model import Invert, Model, Resampling
from jobs.promotion import Verdict, judge_and_promote
from jobs.registry import check_stored
from labelmill.client.session import Session, takes_numbers
from labelmill.registration import DIGITS, Registered, register


class ModelMethods(Session):
    """Everything a client does with models.

    A model is named by its id, by at least six characters of its beginning, or by an alias such as
    `champion`. All methods that take one raise NotFound if there is no such model, and Conflict if several
    ids begin so.
    """

    def models(self) -> list[Model]:
        """Return all models, newest first."""
        with self.ledger.reading() as connection:
            return list_models(connection)

    def model(self, name: str | None = None) -> Model:
        """Return the model with this id, beginning of an id, or alias; the champion if left out."""
        with self.ledger.reading() as connection:
            return model_named(connection, name)

    def register(
        self,
        file: str | PathLike[str],
        *,
        classes: Sequence[str] = DIGITS,
        architecture: str = "custom",
        resampling: Resampling = "bilinear",
        invert: Invert | None = None,
    ) -> Registered:
        """Register a model that was trained elsewhere. It becomes the champion by `promote` only.

        - `file`: a `.keras` file on this machine. It must take grey or RGB images of one size, as bytes
          from 0 to 255, and end with a softmax. Size and colours are read from it. It is run once, to see
          that workers can use it.
        - `classes`: the names of its classes, in the order of its output.
        - `architecture`: what to call its kind in lists.
        - `resampling`: how images are brought to its size: nearest, box, bilinear, bicubic or lanczos.
        - `invert`: which images are inverted first: never, always, or dark_on_light (those with a bright
          border). If left out, dark_on_light if the model takes MNIST's format, 28 x 28 grey, otherwise
          never.

        Returns the model, if it is new, and if `evaluate` can measure it. Registering a file again returns
        the same model. Needs TensorFlow. Raises UserError if the file or the classes cannot be used, Conflict
        if the file was registered with other classes or another input. An example::

            registered = client.register("shoes.keras", classes=["sandal", "sneaker", "boot"])
            client.promote(registered.model.id, force=True)
        """
        return register(
            self.ledger,
            self._store,
            self.settings,
            file,
            classes=classes,
            architecture=architecture,
            resampling=resampling,
            invert=invert,
        )

    def evaluate(
        self, model: str | None = None, *, on_message: Callable[[str], None] = lambda _text: None
    ) -> Evaluation:
        """Measure a model on MNIST's test images, and store the figures for `promote` and `report`.

        The champion is measured as well, unless it was measured on these images before. MNIST comes from
        LABELMILL_MNIST_DIR, the cache, or a download. Needs TensorFlow, and takes seconds.

        - `model`: the champion if left out.
        - `on_message`: called with a line of text at each step.

        Raises UserError if the model has other classes than the images, DataUnavailable if MNIST cannot be
        found or downloaded, ModelRefused if the model's file is missing, changed, or does not run.
        """
        from labelmill.training import load_mnist

        wanted = self.model(model)
        data = load_mnist(self.settings, say=on_message)
        # Imported here: it imports TensorFlow.
        from worker.learning.evaluation import evaluate_champion, evaluate_model

        def on_begin(each: Model) -> None:
            on_message(f"evaluating model {each.id} on {len(data.test_images):,} images")

        on_begin(wanted)
        evaluation = evaluate_model(self.ledger, self._store, self.settings.cache_dir, wanted, data)
        try:
            evaluate_champion(self.ledger, self._store, self.settings.cache_dir, data, on_begin=on_begin)
        except ModelRefused as error:
            on_message(f"the champion cannot be evaluated, so the gate cannot compare this model: {error}")
        return evaluation

    def evaluation(self, model: str | None = None) -> StoredEvaluation | None:
        """Return the model's latest evaluation, or None; of the champion if left out."""
        with self.ledger.reading() as connection:
            return find_evaluation(connection, model_named(connection, model).id)

    def verdict(self, model: str | None = None) -> StoredVerdict | None:
        """Return the gate's latest verdict on the model, or None; on the champion if left out."""
        with self.ledger.reading() as connection:
            return find_verdict(connection, model_named(connection, model).id)

    def report(self, model: str | None = None) -> str:
        """Return a page of HTML on how good the model is, beside the champion; on the champion if left out.

        The page needs no other file: figures, learning curves, confusion matrix, calibration, and mistakes.
        Raises NotFound if the model was never evaluated.

            Path("report.html").write_text(client.report(), encoding="utf-8")
        """
        # Imported here: the templates take as long as a whole command.
        from labelmill.reporting.facts import gather
        from labelmill.reporting.page import render

        with self.ledger.reading() as connection:
            return render(gather(connection, model_named(connection, model).id))

    def promote(self, model: str, *, force: bool = False) -> Verdict:
        """Make the model the champion if it passes the gate, or with `force` in any case; return the verdict.

        New jobs use the new champion; running jobs keep their model. Raises Conflict if the model is the
        champion already or was never evaluated, ModelRefused if its file is missing from the store or was
        changed.
        """
        found = self.model(model)
        check_stored(self._store, found)
        with self.ledger.transaction() as connection:
            return judge_and_promote(
                connection, self.settings.gate_limits, found.id, how="promote", force=force
            )

    def rollback(self) -> Promotion:
        """Make the previous champion the champion again, and return the move. Calling it twice goes two back.

        Raises Conflict if there was no champion before, ModelRefused if its file is missing from the store or
        was changed.
        """
        with self.ledger.reading() as connection:
            model = get_model(connection, champion_before(connection))
        check_stored(self._store, model)
        with self.ledger.transaction() as connection:
            return roll_back(connection, model.id)

    @takes_numbers
    def promotions(self, *, limit: int | None = None) -> list[Promotion]:
        """Return the changes of champion, latest first; all of them if there is no `limit`."""
        with self.ledger.reading() as connection:
            return champion_history(connection, limit=limit)

    def health(self, model: str | None = None) -> Health:
        """Return how a model has done since it was evaluated; the champion if left out.

        That is how often it was right by people's corrections, and if labels and confidences of recent jobs
        are spread as they were on the evaluation images.
        """
        with self.ledger.reading() as connection:
            return model_health(connection, model_named(connection, model).id)

    def begin_shadow(self, model: str) -> Model:
        """Let a challenger classify a share of the chunks as well, and return it. Nobody gets its labels.

        It replaces the present challenger. Raises Conflict if there is no champion to compare it with,
        ModelRefused if its file is missing from the store or was changed.
        """
        found = self.model(model)
        # Otherwise each worker would find out by itself, and say so only in its log.
        check_stored(self._store, found)
        with self.ledger.transaction() as connection:
            return begin_shadow(connection, found.id)

    def end_shadow(self) -> None:
        """Stop the challenger; what was counted stays. Raises Conflict if there is none."""
        with self.ledger.transaction() as connection:
            if not end_shadow(connection):
                raise Conflict(NO_SHADOW)

    @takes_numbers
    def shadow(self, *, limit: int = 20) -> tuple[Comparison, list[Disagreed]]:
        """Return how the challenger compares with the champion, and the first images they disagree on.

        The images of the latest jobs come first. Raises Conflict if there is no challenger.
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
