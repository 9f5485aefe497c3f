"""Before a training run: add the images of an uploaded archive, if it names one, to its dataset."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from jobs.errors import DataUnavailable, NotFound, Unavailable
from jobs.ledger.api.batches import delete_unused
from jobs.ledger.api.files import File, get_file
from worker.learning.trainer import Trainer

logger = logging.getLogger(__name__)

#: How often the command and the run are checked.
_POLL_SECONDS: Final = 0.2


def add_images(trainer: Trainer) -> int | None:
    """Add the images of the run's archive to its dataset. Return how many were new; None without an archive.

    Raises DataUnavailable with the reason if they cannot be added, RunLost, Unavailable.
    """
    file_id = trainer.claim.input_file_id
    if file_id is None:
        return None

    def find() -> File:
        with trainer.ledger.reading() as connection:
            return get_file(connection, file_id)

    with ExitStack() as stack:
        try:
            file = trainer.retry(find)
            copy = trainer.retry(lambda: stack.enter_context(trainer.store.local_copy(file.key)))
        except (NotFound, FileNotFoundError):
            raise DataUnavailable(
                "The uploaded archive was deleted before its images were added: upload it again."
            ) from None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labelmill-adding-")))
        # A fixed name, because that of an uploaded file may be anything.
        archive = folder / ("images.zip" if file.name.lower().endswith(".zip") else "images.tar")
        archive.symlink_to(copy)
        try:
            added = _run_command(trainer, archive)
        except DataUnavailable:
            _delete_input(trainer, file)
            raise
    _delete_input(trainer, file)
    logger.info(
        "training run %s: %d images are new to %s", trainer.claim.run_id, added, trainer.claim.dataset
    )
    return added


def _delete_input(trainer: Trainer, file: File) -> None:
    """Delete the archive if that was requested, and no batch reads it. A purge removes bytes that remain."""
    if not trainer.claim.delete_input:
        return

    def delete() -> bool:
        with trainer.ledger.transaction() as connection:
            return delete_unused(connection, file.id)

    with suppress(Unavailable):
        if trainer.retry(delete):
            trainer.store.remove(file.key)


def _run_command(trainer: Trainer, archive: Path) -> int:
    """Add the archive by the command, which is ended if the run is lost. Return how many images were new.

    Raises DataUnavailable, RunLost.

    The code that reads archives is the producer's, which workers do not import. A process of its own also
    gives its memory back before the training.
    """
    command = [
        sys.executable,
        "-m",
        "labelmill",
        "datasets",
        "add",
        "--json",
        "--",
        trainer.claim.dataset,
        archive.name,
    ]
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(  # noqa: S603 -- our own command line
            command,
            cwd=archive.parent,
            env=os.environ | trainer.settings.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        ) as child,
    ):
        try:
            while child.poll() is None:
                trainer.check()
                time.sleep(_POLL_SECONDS)
        finally:
            child.kill()  # without effect if it has ended; if not, the dataset stays as it was
        stdout.seek(0)
        stderr.seek(0)
        printed = stdout.read().decode(errors="replace")
        said = stderr.read().decode(errors="replace")
    if child.returncode != 0:
        raise DataUnavailable(_reason(child.returncode, said))
    version = json.loads(printed)
    return version["summary"]["added"] if version["new"] else 0


def _reason(returncode: int, said: str) -> str:
    """Return why the command failed: its message, otherwise the last line of what it said."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"The process that added the images was ended by {name}, perhaps for lack of memory."
    rest, *messages = re.split("^labelmill: ", said.strip(), flags=re.MULTILINE)
    return " ".join(messages[-1].splitlines()) if messages else rest.rpartition("\n")[2]
