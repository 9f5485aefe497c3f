"""The client's methods for models: register, evaluate, report, promote, and compare."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from os import PathLike, fspath
from typing import TYPE_CHECKING

from jobs.errors import Conflict, ModelRefused, NotFound, UserError
from jobs.extras import require_tensorflow
from jobs.ledger.jobs.queries import model_named
from jobs.ledger.jobs.shadows import (
    Comparison,
    Disagreement,
    begin_shadow,
    compare,
    end_shadow,
    first_disagreements,
    require_challenger,
    require_champion,
)
from jobs.ledger.learning.gate import Verdict, judge_and_promote, limits_of
from jobs.ledger.learning.health import Health, model_health
from jobs.ledger.learning.learnt import learnt_hashes
from jobs.ledger.learning.model_changes import refused_models, rename_classes
from jobs.ledger.learning.models import (
    Promotion,
    StoredEvaluation,
    StoredVerdict,
    champion_before,
    champion_history,
    check_dataset,
    find_evaluation,
    find_verdict,
    get_model,
    list_models,
    pin_champion,
    roll_back,
)
from jobs.ledger.learning.runtimes import list_runtimes
from jobs.models.class_names import check_class_names
from jobs.models.dataset import MNIST
from jobs.models.evaluation import Evaluation
from jobs.models.model import Invert, Model, Resampling
from jobs.models.runtime import ModelRuntime, Runtime
from jobs.storage.registry import read_stored, remove_model
from jobs.storage.store_identity import check_store
from labelmill.client.installation import Installation, accept_numpy_numbers
from labelmill.client.registration import Registered, register

if TYPE_CHECKING:
    from labelmill.labels.labelled_jobs import LabelledEvaluation
    from producer.sources import SourceImage


class ModelMethods(Installation):
    """The client's methods for models.

    A model is named by its id, the first characters of its id (at least six), or an alias such as `champion`.
    All methods that take a model raise NotFound if none matches, and Conflict if several do.
    """

    def models(self, *, dataset: str | None = None) -> list[Model]:
        """Return the models of a dataset, by default of all datasets, newest first."""
        with self.ledger.reading() as connection:
            if dataset is not None:
                check_dataset(connection, dataset)
            return list_models(connection, dataset)

    def model(self, name: str | None = None, *, dataset: str | None = None) -> Model:
        """Return the model with this id, first characters of an id, or alias; by default the champion.

        Aliases are those of the dataset, by default of `mnist`. Raises Conflict if the model belongs to
        another dataset than the given one.
        """
        with self.ledger.reading() as connection:
            return model_named(connection, name, dataset)

    def register(
        self,
        file: str | PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        dataset: str = MNIST,
        architecture: str = "custom",
        resampling: Resampling = "bilinear",
        invert: Invert | None = None,
        logits: bool = False,
        runtimes: Collection[Runtime] = (),
        on_message: Callable[[str], None] = lambda _text: None,
    ) -> Registered:
        """Register a model that was trained elsewhere. Only `promote` makes it the champion.

        - `file`: a `.keras` file on this machine. The model must take grey or RGB images of one size, as
          bytes (0 to 255), and end with a softmax. Size and colours are read from the file. The model is run
          once, to check that workers can use it.
        - `classes`: the names of its classes, in the order of its outputs. They can be left out if the model
          takes MNIST's format, 28 x 28 grey, and has ten classes: these are then the digits. For another
          dataset, they are by default those of its latest version.
        - `dataset`: the dataset that the model belongs to, so that it can become its champion.
        - `architecture`: the name of its architecture, for lists.
        - `resampling`: how images are resized for the model: nearest, box, bilinear, bicubic or lanczos.
        - `invert`: which images are inverted first: never, always, or dark_on_light (images with a bright
          border). Default: dark_on_light if the model takes MNIST's format; otherwise never.
        - `logits`: whether it answers logits instead of probabilities, so that a softmax is added.
        - `runtimes`: the runtimes to try beside Keras, as for `compile_model`. Default: all if the model
          takes more than two milliseconds per image, otherwise none.
        - `on_message`: called with a line of text at each step that takes long.

        Returns the model, whether it is new, and why `evaluate` cannot measure it (None if it can).
        Registering a file again returns the same model. Needs TensorFlow. Raises UserError if the file or the
        classes cannot be used, Conflict if the file was registered with other options, NotFound if there is
        no such dataset. Example::

            registered = client.register("shoes.keras", classes=["sandal", "sneaker", "boot"])
            client.promote(registered.model.id, force=True)
        """
        return register(
            self.ledger,
            self.store,
            self.settings,
            file,
            classes=classes,
            dataset=dataset,
            architecture=architecture,
            resampling=resampling,
            invert=invert,
            logits=logits,
            runtimes=runtimes,
            on_message=on_message,
        )

    def compile_model(
        self, model: str | None = None, *, runtimes: Collection[Runtime] = ()
    ) -> list[ModelRuntime]:
        """Find out which runtime computes a model quickest, so that workers use it. Default: the champion.

        - `runtimes`: the runtimes to try beside Keras. Default: all that are as precise as Keras. With Keras
          alone, workers use Keras.

        The model is exported for ONNX Runtime, OpenVINO and LiteRT, and their labels and confidences are
        compared with those of Keras, on images of its dataset and on made-up ones. Lower precisions are
        judged by the gate's limits, on up to 2,000 test images of its dataset. Return what was found,
        the quickest first. A runtime that fails or differs is a result, too. Needs TensorFlow, and takes a
        minute. Raises ModelRefused if the model's file is missing or changed, Unavailable.
        """
        require_tensorflow("Compiling")
        from worker.learning.compiling.compile import compile_model

        found = self.model(model)
        check_store(self.ledger, self.store)
        return compile_model(self.ledger, self.store, self.settings, found, runtimes)

    def runtimes(self, model: str | None = None) -> list[ModelRuntime]:
        """Return the runtimes that a model (default: the champion) was compiled for, the quickest first."""
        with self.ledger.reading() as connection:
            return list_runtimes(connection, model_named(connection, model).id)

    def edit_model(self, model: str, *, classes: Sequence[str]) -> Model:
        """Correct the names of a model's classes, in the order of its outputs, and return the model.

        Its evaluations are removed. Raises UserError if the names cannot be used or are not as many as its
        classes, Conflict if a job, an alias, a promotion, a training run or a correction depends on them.
        """
        check_class_names(classes, "The list of classes")
        with self.ledger.transaction() as connection:
            return rename_classes(connection, model_named(connection, model).id, tuple(classes))

    def remove_model(self, model: str) -> Model:
        """Remove a model that nothing refers to, with its file and its evaluations. Return its last state.

        A model that the gate refused can be removed even if a training run made it. Raises Conflict, which
        says what refers to it; Unavailable.
        """
        found = self.model(model)
        check_store(self.ledger, self.store)
        remove_model(self.ledger, self.store, found)
        return found

    @accept_numpy_numbers
    def remove_refused_models(self, *, older_than_days: float = 0.0) -> list[Model]:
        """Remove the models that the gate refused and that nothing else refers to. Return their last states.

        - `older_than_days`: only models that were made so many days ago.

        Raises Unavailable.
        """
        with self.ledger.reading() as connection:
            refused = refused_models(connection, older_than_days=older_than_days)
        removed = []
        for each in refused:
            with suppress(Conflict, NotFound):  # a job uses it, or another process has removed it
                removed.append(self.remove_model(each))
        return removed

    def evaluate(
        self, model: str | None = None, *, on_message: Callable[[str], None] = lambda _text: None
    ) -> Evaluation:
        """Evaluate a model on its dataset's test images, and store the figures for `promote` and `report`.

        The images are those of the dataset's latest version. The model is also evaluated on the held-out
        corrections, if there are any. The champion is evaluated as well, unless it has been evaluated on
        these images already. Needs TensorFlow, and takes seconds.

        - `model`: the model to evaluate. Default: the champion.
        - `on_message`: called with a line of text at each step.

        Raises UserError if the model has other classes, NotFound if the dataset has no images,
        DataUnavailable if they cannot be read, ModelRefused if the model's file is missing, changed, or does
        not run.
        """
        require_tensorflow("An evaluation")
        wanted = self.model(model)
        # Imported here: they import TensorFlow.
        from worker.learning.corrections import add_corrections
        from worker.learning.evaluation import evaluate_champion, evaluate_model
        from worker.learning.stored import open_dataset

        dataset = open_dataset(self.settings, self.ledger, self.store, wanted.dataset)
        data = add_corrections(
            dataset.prepared(wanted.input_spec, for_training=False),
            self.ledger,
            self.store,
            self.settings.image_limits,
            live_share=self.settings.live_share,
        )

        def on_begin(each: Model) -> None:
            on_message(f"evaluating model {each.id} on {len(data.test):,} images")

        on_begin(wanted)
        evaluation = evaluate_model(self.ledger, self.store, self.settings.cache_dir, wanted, data)
        try:
            evaluate_champion(self.ledger, self.store, self.settings.cache_dir, data, on_begin=on_begin)
        except (ModelRefused, UserError) as error:
            on_message(f"the champion cannot be evaluated, so the gate cannot compare this model: {error}")
        return evaluation

    def evaluate_images(
        self,
        model: str | None,
        *sources: str | PathLike[str],
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> LabelledEvaluation:
        """Run a model on labelled images and compare its labels with those of their manifest or folders.

        The model runs in this process, which must be its main thread, and nothing is stored. Only images
        whose label is a class of the model count, and images that were corrected before its training run
        are left out. Needs TensorFlow.

        - `model`: the model to evaluate; None is the champion.
        - `sources`: what `submit` takes: a folder with one subfolder per class, or a manifest with the column
          `label`.
        - `on_progress`: called with the number of images classified so far.

        Raises SourceError if a source cannot be read, UserError if no image has such a label, ModelRefused
        if the model's file is missing, changed, or does not run.
        """
        from labelmill.labels.labelled_jobs import classify_images, compare_with_known
        from producer.sources import Sources

        require_tensorflow("Evaluating")
        found = self.model(model)
        images = Sources(
            [fspath(source) for source in sources],
            max_bytes=self.settings.max_image_bytes,
            archives=self.settings.archive_limits,
        )
        with self.ledger.reading() as connection:
            hashes = learnt_hashes(connection, found.id)
        learnt: set[int] = set()
        known: dict[int, str] = {}

        def noted() -> Iterator[SourceImage]:
            for index, image in enumerate(images):
                if image.data is not None and hashlib.sha256(image.data).hexdigest() in hashes:
                    learnt.add(index)
                if image.label is not None:
                    known[index] = image.label
                yield image

        predictions = classify_images(self.store, self.settings, found, noted(), on_progress)
        return compare_with_known(predictions, found, known, learnt=learnt)

    def evaluation(self, model: str | None = None) -> StoredEvaluation | None:
        """Return the latest evaluation of a model (default: the champion), or None."""
        with self.ledger.reading() as connection:
            return find_evaluation(connection, model_named(connection, model).id)

    def verdict(self, model: str | None = None) -> StoredVerdict | None:
        """Return the gate's latest verdict on a model (default: the champion), or None."""
        with self.ledger.reading() as connection:
            return find_verdict(connection, model_named(connection, model).id)

    def report(self, model: str | None = None) -> str:
        """Return an HTML report on a model (default: the champion), compared with the champion.

        For the champion itself, the page compares it with the previous champion. The page needs no other
        file. It shows figures, learning curves, confusion matrix, calibration and mistakes. Raises NotFound
        if the model was never evaluated. Example::

            Path("report.html").write_text(client.report(), encoding="utf-8")
        """
        # Imported here: importing the template engine takes as long as a whole command.
        from labelmill.reporting.model_page import render
        from labelmill.reporting.report_data import load_report

        with self.ledger.reading() as connection:
            return render(load_report(connection, model_named(connection, model).id))

    def promote(self, model: str, *, force: bool = False) -> Verdict:
        """Make the model the champion if it passes the gate, and return the gate's verdict.

        With `force`, promote the model even if it fails or the champion is pinned. New jobs use the new
        champion; running jobs keep their model. Raises Conflict if the model is already the champion or was
        never evaluated, ModelRefused if its file is missing from the store or was changed.
        """
        found = self.model(model)
        read_stored(self.store, found)
        with self.ledger.transaction() as connection:
            limits = limits_of(connection, found.dataset)
            verdict = judge_and_promote(connection, limits, found.id, how="promote", force=force)
            if verdict.promote:
                self.on_change(connection, "promote model", found.id)
        return verdict

    def pin(self, *, dataset: str = MNIST) -> Model:
        """Pin the dataset's champion, and return it: no training run replaces it until `unpin` is called.

        `promote` needs `force`, which releases the pin, and `rollback` is refused. Raises NotFound if there
        is no champion.
        """
        with self.ledger.transaction() as connection:
            return pin_champion(connection, dataset, pinned=True)

    def unpin(self, *, dataset: str = MNIST) -> Model:
        """Release the dataset's champion, and return it. Raises NotFound if there is no champion."""
        with self.ledger.transaction() as connection:
            return pin_champion(connection, dataset, pinned=False)

    def rollback(self, *, dataset: str = MNIST) -> Promotion:
        """Make the dataset's previous champion the champion again, and return this promotion.

        A second call goes back one champion further. Raises Conflict if there is no previous champion or the
        present one is pinned, ModelRefused if its file is missing from the store or was changed.
        """
        with self.ledger.reading() as connection:
            check_dataset(connection, dataset)
            model = get_model(connection, champion_before(connection, dataset))
        read_stored(self.store, model)
        with self.ledger.transaction() as connection:
            self.on_change(connection, "roll back", model.id)
            return roll_back(connection, model.id)

    @accept_numpy_numbers
    def promotions(self, *, dataset: str = MNIST, limit: int | None = None) -> list[Promotion]:
        """Return the changes of the dataset's champion, latest first; without `limit`, all of them."""
        with self.ledger.reading() as connection:
            check_dataset(connection, dataset)
            return champion_history(connection, dataset, limit=limit)

    def health(self, model: str | None = None, *, dataset: str | None = None) -> Health:
        """Return how a model (default: the dataset's champion) has performed since it was evaluated.

        That is how often it was right, judged by people's corrections, and whether the labels and confidences
        of recent jobs are distributed as they were on the evaluation images.
        """
        with self.ledger.reading() as connection:
            return model_health(connection, model_named(connection, model, dataset).id)

    def begin_shadow(self, model: str) -> Model:
        """Make a model its dataset's challenger, which also classifies a share of the chunks, and return it.

        Its labels are only compared with the champion's; no job gets them. It replaces the dataset's present
        challenger. Raises Conflict if it cannot be compared with a champion, ModelRefused if its file is
        missing from the store or was changed.
        """
        found = self.model(model)
        # Without this check, each worker would notice only on loading the file, and only log it.
        read_stored(self.store, found)
        with self.ledger.transaction() as connection:
            return begin_shadow(connection, found.id)

    def end_shadow(self, *, dataset: str = MNIST) -> None:
        """Stop the dataset's challenger; its results so far are kept. Raises Conflict if there is none."""
        with self.ledger.transaction() as connection:
            end_shadow(connection, dataset)

    @accept_numpy_numbers
    def shadow(self, *, dataset: str = MNIST, limit: int = 20) -> tuple[Comparison, list[Disagreement]]:
        """Return how the dataset's challenger compares with its champion, and images they disagree on.

        Up to `limit` images, those of the latest jobs first. Raises Conflict if there is no challenger.
        """
        with self.ledger.reading() as connection:
            model_id = require_challenger(connection, dataset)
            champion = require_champion(connection, dataset).id
            return (
                compare(connection, model_id, beside=champion),
                first_disagreements(connection, model_id, beside=champion, limit=limit),
            )
