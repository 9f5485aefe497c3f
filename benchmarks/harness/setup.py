"""The setup of every benchmark: clean settings, image files, a trained model and two empty databases."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import typer

from benchmarks.harness.databases import Databases, Work, databases
from benchmarks.harness.images import Pictures, make_images
from benchmarks.harness.model import TrainedModel, train_once
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.payloads import PAYLOADS, payload_folder
from jobs.storage.store import Store
from labelmill.console.terminal import report_errors

#: One per core of the machine that the figures in docs/explanation/performance.md come from.
PROCESSES: Final = 2

#: Options that all measurements have.
WorkDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Where images and model are kept between runs.")
]
Json: TypeAlias = Annotated[
    Path, typer.Option("--json", help="The folder that the JSON file is written into.")
]

#: The settings of a developer that apply to benchmarks; their broker and ledger do not.
_SETTINGS_KEPT: Final = frozenset(ENV_PREFIX + name for name in ("MNIST_DIR", "CHUNK_IMAGES"))


@dataclass(frozen=True)
class Setup:
    """What a measurement runs on."""

    model: TrainedModel
    folder: Path  # with the images
    home: Path  # of this run: temporary, with a path short enough for Unix sockets
    databases: Databases
    settings: Settings  # of a pipeline on the first database, with the embedded broker and store

    def settle(self) -> None:
        """Write everything to the disk, so that the next measurement does not wait for it."""
        self.databases.settle()
        os.sync()

    def drop_payloads(self) -> None:
        """Remove the payloads of all jobs, which must have finished.

        Otherwise their files keep memory, and the next files need fresh memory from the virtual machine's
        host. That would double a producer's time for photographs, and has nothing to do with Labelmill.
        """
        store = Store(self.settings.store)
        for job_id in store.folders(PAYLOADS):
            store.remove_folder(payload_folder(job_id))


def run(command: Callable[..., None]) -> None:
    """Run a measurement as a command, without the developer's settings. SIGTERM ends it as Ctrl-C does."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        if name not in _SETTINGS_KEPT:
            del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(report_errors(command))
    app()


@contextlib.contextmanager
def prepare(
    work_dir: Path | None,
    *,
    images: int,
    pictures: Pictures = Pictures.DIGITS,
    work: Work = Work.POSTGRESQL,
    processes: int = PROCESSES,
    days_ago: float = 0,
    **settings: Any,
) -> Iterator[Setup]:
    """Set up a measurement with so many images, on databases as if they were made so many days ago.

    Images and model are kept between runs. Raises DataUnavailable, LabelmillError.
    """
    model, folder = train_once(kept_folder(work_dir)), kept_images(work_dir, images, pictures)
    home = Path(tempfile.mkdtemp(prefix="lm-")).resolve()
    try:
        with databases(work, home, days_ago=days_ago) as both:
            places = {"ledger_url": both.pipeline, "broker_url": None, "store_url": None}
            yield Setup(
                model,
                folder,
                home,
                both,
                Settings.load(home=home / "home", processes=processes, **places, **settings),
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)


def kept_images(work_dir: Path | None, images: int, pictures: Pictures = Pictures.DIGITS) -> Path:
    """Return a folder with so many images, made if it is missing. Raises DataUnavailable."""
    kept = kept_folder(work_dir)
    return make_images(pictures, images, Settings.load(home=kept / "model"), kept)


def kept_folder(work_dir: Path | None) -> Path:
    """Return the folder that keeps images and model. In the temporary folder anybody may have made it.

    Raises BadParameter if it belongs to somebody else.
    """
    if work_dir is None:
        work_dir = Path(tempfile.gettempdir()) / f"labelmill-benchmarks-{os.getuid()}"
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if work_dir.stat().st_uid != os.getuid():
        raise typer.BadParameter(f"{work_dir} belongs to somebody else.")
    return work_dir.resolve()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
