"""Training in this process: the run itself, with a bar and a line an epoch."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import UserError
from jobs.extras import install_hint
from jobs.ledger.runs import RUN_GRACE_SECONDS, Run
from jobs.settings import Settings
from labelmill.console import say, time_words
from labelmill.progress import ProgressLine
from labelmill.signals import sigterm_like_ctrl_c

#: TensorFlow's dice take a seed of 32 bits with a sign.
MAX_SEED: Final = 2**31 - 1

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

    from worker.learning.mnist import Mnist
    from worker.learning.recipes import Recipe
    from worker.learning.retrain import Retrained
    from worker.learning.training import EpochResult


def load_mnist(settings: Settings, *, allow_sample: bool = False, say: Callable[[str], None] = say) -> Mnist:
    """Return MNIST, or with `allow_sample` the sample if MNIST cannot be downloaded.

    `say` is called with what people should know, such as a download. Raises DataUnavailable, and UserError
    without TensorFlow.
    """
    need_tensorflow()
    from worker.learning import mnist

    return mnist.load(settings.mnist_dir, settings.cache_dir, allow_sample=allow_sample, say=say)


def train_with_progress(
    settings: Settings, recipe: Recipe, data: Mnist | None = None, *, replace: bool = False
) -> Retrained:
    """One training run. Raises Conflict where another one is under way, DataUnavailable, Unavailable, or
    UserError without TensorFlow.
    """
    data = data or load_mnist(settings)
    # Only here: importing TensorFlow takes seconds, which nobody should wait for who asked for --help.
    from worker.learning.retrain import begin_run, retrain

    # Who is told to stop says so in the run, which otherwise seems to go on until somebody misses it.
    with sigterm_like_ctrl_c():
        claim = begin_run(settings, recipe, on_wait=say_silent)
        with ProgressLine("training") as progress:

            def on_batch(epoch: int, done: int, total: int) -> None:
                progress.update(
                    (epoch - 1) * total + done,
                    total=recipe.epochs * total,
                    note=f"epoch {epoch} of {recipe.epochs}",
                )

            def on_epoch(result: EpochResult) -> None:
                say(epoch_line(result, recipe.epochs))

            return retrain(settings, claim, data, replace=replace, on_batch=on_batch, on_epoch=on_epoch)


def say_silent(run: Run) -> None:
    """Says why a run that was asked for does not begin at once."""
    say(
        f"training run {run.id} is under way, but its trainer gave no sign of life since "
        f"{time_words(run.silent_since)}: waiting for one, for {RUN_GRACE_SECONDS:g} seconds at the most"
    )


def epoch_line(epoch: EpochResult | Row[Any], epochs: int) -> str:
    """Return how an epoch went, in one line. Held-out images are training images that are not trained on."""
    return (
        f"epoch {epoch.epoch} of {epochs}: accuracy {epoch.accuracy:.4f}, "
        f"held-out accuracy {epoch.val_accuracy:.4f}, {epoch.seconds:.1f} s"
    )


def need_tensorflow(what: str = "Training", *more: str) -> None:
    """Raises UserError where it is not installed; `more` extras are to be installed with it."""
    if find_spec("tensorflow") is None:
        raise UserError(f"{what} needs TensorFlow: {install_hint('worker', *more)}.")
