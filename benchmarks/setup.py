"""The setup of every benchmark: clean settings, folders, images and a model."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn, TypeAlias

import typer

from benchmarks.databases import Work
from benchmarks.images import Pictures, make_images
from benchmarks.model import TrainedModel, train_once
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.payloads import PAYLOADS, payload_folder
from jobs.storage.store import Store

RESULTS: Final = Path(__file__).parent / "results"

#: One per core of the machine that the figures in docs/explanation/performance.md come from.
PROCESSES: Final = 2

#: Options that several measurements have.
Works: TypeAlias = Annotated[
    list[Work] | None, typer.Option("--work", help="Which database; may be given twice. Left out: both.")
]
Processes: TypeAlias = Annotated[int, typer.Option(min=1, help="Worker processes.")]
WorkDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Where images and model are kept between runs.")
]
Json: TypeAlias = Annotated[
    Path, typer.Option("--json", help="The folder that the JSON file is written into.")
]

#: The settings of a developer that apply to benchmarks; their broker and ledger do not.
_SETTINGS_KEPT: Final = frozenset(ENV_PREFIX + name for name in ("MNIST_DIR", "CHUNK_IMAGES"))


def run(command: Callable[..., None]) -> None:
    """Run a measurement as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def prepare(work_dir: Path | None, *, images: int) -> tuple[TrainedModel, Path]:
    """Return the trained model, and a folder with so many digits. Drop the developer's settings.

    Raises DataUnavailable, LabelmillError.
    """
    drop_developer_settings()
    kept = kept_folder(work_dir)
    model = train_once(kept)
    return model, make_images(Pictures.DIGITS, images, Settings.load(home=kept / "model"), kept)


def drop_developer_settings() -> None:
    """Drop a developer's settings, and make SIGTERM end a run as Ctrl-C does."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        if name not in _SETTINGS_KEPT:
            del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)


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


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder for one run, with a path short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="lm-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings_in(home: Path, ledger_url: str, processes: int) -> Settings:
    """Return the settings of a state folder in `home`, with the embedded broker and store."""
    return Settings.load(
        home=home / "home", ledger_url=ledger_url, broker_url=None, store_url=None, processes=processes
    )


def settle(database: Callable[[], None]) -> None:
    """Write everything to the disk, so that the next measurement does not wait for it."""
    database()
    os.sync()


def drop_payloads(settings: Settings) -> None:
    """Remove the payloads of all jobs, which must have finished.

    Otherwise their files keep memory, and the next files need fresh memory from the virtual machine's host.
    That would double a producer's time for photographs, and has nothing to do with Labelmill.
    """
    store = Store(settings.store)
    for job_id in store.folders(PAYLOADS):
        store.remove_folder(payload_folder(job_id))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
