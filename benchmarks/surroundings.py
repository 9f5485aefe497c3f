"""What every benchmark needs around it: no settings of a developer's, folders, images, a model."""

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
from jobs.payloads import PAYLOADS, payload_folder
from jobs.settings import ENV_PREFIX, Settings
from jobs.store import Store

RESULTS: Final = Path(__file__).parent / "results"

#: As many as the machine has cores to give: the figures in docs/explanation/performance.md are of two.
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

#: What of a developer's environment may reach a benchmark; a broker or ledger of theirs must not.
_SETTINGS_HEEDED: Final = frozenset(ENV_PREFIX + name for name in ("MNIST_DIR", "CHUNK_IMAGES"))


def run(command: Callable[..., None]) -> None:
    """Runs a measurement as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def prepare(work_dir: Path | None, *, images: int) -> tuple[TrainedModel, Path]:
    """The trained model, and a folder with so many digits. Leaves the developer's settings out. Raises
    DataUnavailable, LabelmillError.
    """
    leave_developer_out()
    kept = kept_folder(work_dir)
    model = train_once(kept)
    return model, make_images(Pictures.DIGITS, images, Settings.load(home=kept / "model"), kept)


def leave_developer_out() -> None:
    """Forgets a developer's settings, and makes SIGTERM end a run as Ctrl-C does."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        if name not in _SETTINGS_HEEDED:
            del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)


def kept_folder(work_dir: Path | None) -> Path:
    """Where images and model stay. In the temporary folder the name is known to all: it must be ours.

    Raises BadParameter where it is not.
    """
    if work_dir is None:
        work_dir = Path(tempfile.gettempdir()) / f"labelmill-benchmarks-{os.getuid()}"
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if work_dir.stat().st_uid != os.getuid():
        raise typer.BadParameter(f"{work_dir} belongs to somebody else.")
    return work_dir.resolve()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for one run whose path has room for a Unix socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="lm-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings_in(home: Path, ledger_url: str, processes: int) -> Settings:
    """A state folder in `home`, with the embedded broker and store."""
    return Settings.load(
        home=home / "home", ledger_url=ledger_url, broker_url=None, store_url=None, processes=processes
    )


def settle(database: Callable[[], None]) -> None:
    """What one measurement has left for the disk is not the next one's to wait for."""
    database()
    os.sync()


def drop_payloads(settings: Settings) -> None:
    """Removes what all jobs so far have left in the store, none of which may be unfinished. Files that stay
    hold memory, and the next ones need some that nobody has used before, or not for seconds: in a virtual
    machine that costs a producer of photographs as much again as all it does, and is no cost of ours.
    """
    store = Store(settings.store)
    for job_id in store.folders(PAYLOADS):
        store.remove_folder(payload_folder(job_id))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
