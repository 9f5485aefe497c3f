"""Training: whether the schedule can be read, and its data is at hand. For machines that can train."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from jobs.errors import DataUnavailable, SettingsError
from jobs.settings import Settings
from labelmill.doctor.findings import Area, Finding, words_of
from worker.schedule import beat_schedule

_area = Area("training")


def check_training(settings: Settings) -> Iterator[Finding]:
    """The cron line, and MNIST."""
    yield _schedule(settings)
    if find_spec("tensorflow") is not None:
        yield _data(settings)


def _schedule(settings: Settings) -> Finding:
    try:
        schedule = beat_schedule(settings)
    except SettingsError as error:
        return _area.problem(words_of(error, settings), fix="LABELMILL_RETRAIN_CRON='0 3 * * 0', or never")
    if not schedule:
        return _area.ok("retraining is switched off")
    return _area.ok(f"retraining at {settings.retrain_cron} (cron, UTC)")


def _data(settings: Settings) -> Finding:
    from worker.learning import mnist  # needs NumPy

    if settings.mnist_dir is not None:
        try:
            mnist.read_folder(settings.mnist_dir, lambda _line: None)
        except DataUnavailable as error:
            return _area.warning(
                f"cannot train: {words_of(error, settings)}",
                fix="LABELMILL_MNIST_DIR=a folder with MNIST's four IDX files, or left out for a download",
            )
        return _area.ok(f"MNIST is in {settings.mnist_dir}")
    if (settings.cache_dir / mnist.CACHED).exists():
        return _area.ok("MNIST was downloaded before")
    return _area.ok("MNIST is not here yet; the first training downloads it")
