"""Training at the console: the run itself, with a bar and a line an epoch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobs.errors import UserError
from jobs.settings import Settings
from labelmill.console import say
from labelmill.progress import ProgressLine

if TYPE_CHECKING:
    from worker.learning.mnist import Mnist
    from worker.learning.retrain import Retrained
    from worker.learning.training import EpochResult


def load_mnist(settings: Settings, *, allow_sample: bool = False) -> Mnist:
    """MNIST, or with `allow_sample` the sample that is always at hand. Raises DataUnavailable."""
    _need_tensorflow()
    from worker.learning import mnist

    return mnist.load(settings.mnist_dir, settings.cache_dir, allow_sample=allow_sample, say=say)


def train_with_progress(
    settings: Settings, data: Mnist | None = None, *, seed: int = 1, replace: bool = False
) -> Retrained:
    """One training run. Raises DataUnavailable, Unavailable, or UserError without TensorFlow."""
    data = data or load_mnist(settings)
    # Only here: importing TensorFlow takes seconds, which nobody should wait for who asked for --help.
    from worker.learning.retrain import retrain
    from worker.learning.training import Recipe

    recipe = Recipe(seed=seed)
    with ProgressLine("training") as progress:

        def on_batch(epoch: int, done: int, total: int) -> None:
            progress.update(
                (epoch - 1) * total + done,
                total=recipe.epochs * total,
                note=f"epoch {epoch} of {recipe.epochs}",
            )

        def on_epoch(result: EpochResult) -> None:
            say(
                f"epoch {result.epoch} of {recipe.epochs}: loss {result.loss:.4f}, "
                f"accuracy {result.accuracy:.4f}, test loss {result.val_loss:.4f}, "
                f"test accuracy {result.val_accuracy:.4f}, {result.seconds:.1f} s"
            )

        return retrain(settings, data, recipe=recipe, replace=replace, on_batch=on_batch, on_epoch=on_epoch)


def _need_tensorflow() -> None:
    if find_spec("tensorflow") is None:
        raise UserError("Training needs TensorFlow: pip install 'labelmill[worker]'.")
