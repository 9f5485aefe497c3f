"""Train in this process, with a progress bar and a line per epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import UserError
from jobs.extras import install_hint
from jobs.ledger.learning.runs import RUN_GRACE_SECONDS, Run
from jobs.models.dataset import MNIST
from jobs.settings import Settings
from labelmill.console.progress import ProgressLine
from labelmill.console.signals import sigterm_like_ctrl_c
from labelmill.console.terminal import format_time, say

#: TensorFlow's random generators take a signed 32-bit seed.
MAX_SEED: Final = 2**31 - 1

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

    from jobs.models.model import InputSpec
    from worker.learning.mnist import Mnist
    from worker.learning.recipes import Recipe
    from worker.learning.retrain import Retrained
    from worker.learning.training import EpochResult


def load_mnist(settings: Settings, *, allow_sample: bool = False, say: Callable[[str], None] = say) -> Mnist:
    """Return MNIST, or with `allow_sample` the sample if MNIST cannot be downloaded.

    `say` is called with messages for the user, for example about a download. Raises DataUnavailable, and
    UserError without TensorFlow.
    """
    require_tensorflow()
    from worker.learning import mnist

    return mnist.load(settings.mnist_dir, settings.cache_dir, allow_sample=allow_sample, say=say)


def train_with_progress(
    settings: Settings,
    recipe: Recipe,
    data: Mnist | None = None,
    *,
    dataset: str = MNIST,
    replace: bool = False,
) -> Retrained:
    """Execute one training run and show its progress. `data` is MNIST if it is loaded already.

    Raises Conflict if another run is active, UserError without TensorFlow, DataUnavailable, NotFound,
    Unavailable.
    """
    require_tensorflow()
    if dataset == MNIST:
        data = data or load_mnist(settings)
    # Imported here: importing TensorFlow takes seconds, and --help should not wait for it.
    from worker.learning.retrain import begin_run, retrain

    # On SIGTERM, the run is recorded as interrupted. Otherwise it would look active until its lease expires.
    with sigterm_like_ctrl_c():
        claim = begin_run(settings, recipe, dataset=dataset, on_wait=report_silent_trainer)
        with ProgressLine("training") as progress:
            epochs = recipe.epochs

            def on_data(chosen: Recipe, spec: InputSpec) -> None:
                nonlocal epochs
                epochs = chosen.epochs
                if chosen.augment is not None:
                    say(choice_line(chosen.to_json(), asdict(spec)))

            def on_batch(epoch: int, done: int, total: int) -> None:
                progress.update(
                    (epoch - 1) * total + done, total=epochs * total, note=f"epoch {epoch} of {epochs}"
                )

            def on_epoch(result: EpochResult) -> None:
                say(epoch_line(result, epochs))

            return retrain(
                settings,
                claim,
                data,
                replace=replace,
                on_data=on_data,
                on_batch=on_batch,
                on_epoch=on_epoch,
                say=say,
            )


def choice_line(recipe: dict[str, Any], spec: dict[str, Any]) -> str:
    """Return one line about what was chosen from the data: a run's recipe, and the input of its model."""
    colours = "grey" if spec["mode"] == "L" else "colour"
    minutes = recipe.get("max_minutes")
    limit = f", at most {minutes:g} {'minute' if minutes == 1 else 'minutes'}" if minutes else ""
    return (
        f"{recipe['architecture']} for {colours} images of {spec['width']}x{spec['height']} pixels, "
        f"augmentation {recipe['augment']}, up to {recipe['epochs']} epochs in batches of "
        f"{recipe['batch_size']}{limit}"
    )


def report_silent_trainer(run: Run) -> None:
    """Print why a requested run does not start at once."""
    say(
        f"training run {run.id} is running, but its trainer has sent no heartbeat since "
        f"{format_time(run.silent_since)}: waiting up to {RUN_GRACE_SECONDS:g} seconds for one"
    )


def epoch_line(epoch: EpochResult | Row[Any], epochs: int) -> str:
    """Return an epoch's figures in one line. Held-out images are training images that are not trained on."""
    return (
        f"epoch {epoch.epoch} of {epochs}: accuracy {epoch.accuracy:.4f}, "
        f"held-out accuracy {epoch.val_accuracy:.4f}, {epoch.seconds:.1f} s"
    )


def require_tensorflow(what: str = "Training", *more: str) -> None:
    """Raise UserError if TensorFlow is not installed. Its advice also names the extras in `more`."""
    if find_spec("tensorflow") is None:
        raise UserError(f"{what} needs TensorFlow: {install_hint('worker', *more)}.")
