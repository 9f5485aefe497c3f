"""One training run from data to verdict: load, train, evaluate, register, promote.

Nothing anybody uses changes before the last step, which is one transaction: a run that fails or is killed
leaves the champion as it was.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.errors import LabelmillError
from jobs.files import make_private_folder
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.models import CHAMPION, find_champion, get_model, point_alias
from jobs.ledger.runs import add_epoch, fail_run, finish_run, open_run
from jobs.model import MNIST_INPUT, Model
from jobs.registry import register_model
from jobs.settings import Settings
from jobs.store import Store
from worker.learning import mnist
from worker.learning.evaluation import evaluate
from worker.learning.promotion import Verdict, judge
from worker.learning.training import CLASSES, EpochResult, Recipe, save, train
from worker.predicting.classifier import Classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a run came to."""

    run_id: str
    model: Model
    verdict: Verdict


def retrain(
    settings: Settings,
    data: mnist.Mnist | None = None,
    *,
    recipe: Recipe | None = None,
    replace: bool = True,
    on_batch: Callable[[int, int, int], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> Retrained:
    """Trains on all training images and judges the result on all test images.

    With `replace` a better model becomes the champion; without, only where there is none. Raises
    DataUnavailable, Unavailable, LedgerNotReady; what goes wrong in training is also written into its row.
    """
    recipe = recipe or Recipe()
    data = data or mnist.load(settings.mnist_dir, settings.cache_dir, say=logger.info)
    ledger, store = Ledger(settings.ledger), Store(settings.store)
    run_id = new_id()
    with ledger.transaction() as connection:
        open_run(
            connection,
            run_id,
            recipe=asdict(recipe),
            data_source=data.source,
            data_fingerprint=data.fingerprint,
        )

    def epoch_done(result: EpochResult) -> None:
        with ledger.transaction() as connection:
            add_epoch(connection, run_id, asdict(result))
        if on_epoch:
            on_epoch(result)

    try:
        trained = train(data, recipe, MNIST_INPUT, on_batch=on_batch, on_epoch=epoch_done)
        make_private_folder(settings.cache_dir)  # nothing is written outside the state folder
        with tempfile.TemporaryDirectory(prefix="training-", dir=settings.cache_dir) as folder:
            path = Path(folder) / "model.keras"
            save(trained, path)
            # Judged as it will be served: read back from its file, by the code that predicts.
            classifier = Classifier.load(path, CLASSES, MNIST_INPUT)
            evaluation = evaluate(classifier, data.test_images, data.test_labels)
            model = register_model(
                ledger,
                store,
                path.read_bytes(),
                architecture=recipe.architecture,
                classes=CLASSES,
                input_spec=MNIST_INPUT,
                accuracy=evaluation.accuracy,
                metrics={"evaluation": evaluation.to_json(), "data": data.source, "run": run_id},
            )
        with ledger.transaction() as connection:
            verdict = judge(evaluation.accuracy, find_champion(connection), replace=replace)
            if verdict.promote:
                point_alias(connection, CHAMPION, model.id)
            finish_run(connection, run_id, model_id=model.id, verdict=verdict.reason)
            model = get_model(connection, model.id)
    except BaseException as error:
        with ledger.transaction() as connection:
            fail_run(connection, run_id, str(error) if isinstance(error, LabelmillError) else repr(error))
        raise
    finally:
        ledger.close()
    logger.info("training run %s: model %s %s", run_id, model.id, verdict.reason)
    return Retrained(run_id, model, verdict)
