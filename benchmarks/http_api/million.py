"""`python -m benchmarks.http_api million`: take in a large archive, and a prefix of a bucket.

Each takes turns with the command `submit` on the same images. No worker runs: the clock starts with the first
byte that is sent, or with the command, and stops when all images are committed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, NamedTuple

import typer

from benchmarks.databases import Work, databases
from benchmarks.http_api.bucket import Bucket
from benchmarks.http_api.served import Api, Served
from benchmarks.images import MOST_DIGITS, list_images
from benchmarks.model import make_champion
from benchmarks.report import write_measured
from benchmarks.setup import (
    RESULTS,
    Json,
    WorkDir,
    drop_payloads,
    prepare,
    settings_in,
    settle,
    short_folder,
)
from labelmill.client import Client
from labelmill.console.terminal import report_errors, say
from labelmill.local.stack import Stack

#: Seconds between two looks at the API's memory.
_LOOK_SECONDS: Final = 0.25

#: The memory at this share of a step is compared with that at its end.
_BEGINNING: Final = 0.1


class Turn(NamedTuple):
    """One batch over HTTP, and one job of the command."""

    api_seconds: float
    command_seconds: float
    api_kib: dict[str, tuple[int, int]]  # the API's memory at a tenth of each step, and at its end

    def growth_percent(self) -> float:
        """Return by how much the memory has grown, in the step in which it has grown most."""
        return round(max(100 * (end / beginning - 1) for beginning, end in self.api_kib.values()), 2)


@report_errors
def main(
    images: Annotated[int, typer.Option(min=10, max=MOST_DIGITS, help="Images of the archive.")] = 1_000_000,
    objects: Annotated[int, typer.Option(min=10, max=MOST_DIGITS, help="Objects of the bucket.")] = 50_000,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 3,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Take in a large archive and a bucket over HTTP, in turns with the command."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=images)
    _, bucket_folder = prepare(work_dir, images=objects)
    archive = _archive(folder)
    with (
        short_folder() as home,
        databases(Work.POSTGRESQL, home) as both,
        Bucket(bucket_folder) as bucket,
    ):
        more = {"max_archive_members": images + 100, "reference_roots": (bucket.url,)}
        settings = settings_in(home, both.pipeline, 1).model_copy(update=more)
        with Client(settings) as client, Stack(settings, worker=False):
            make_champion(model, client.ledger, settings)
            with Served(settings, client.ledger) as served:

                def take_turn(source: str, begin: Callable[[Api, _Watch], str], number: int) -> Turn:
                    settle(both.settle)
                    with served.connect() as api, _Watch(served, number) as watch:
                        began = time.perf_counter()
                        watch.batch_id = begin(api, watch)
                        api.wait(watch.batch_id, "in_progress", "completed")
                        seconds = time.perf_counter() - began
                    _check(client, watch.batch_id, number)
                    settle(both.settle)
                    began = time.perf_counter()
                    command = [sys.executable, "-m", "labelmill", "submit", source]
                    environment = os.environ | settings.environment()
                    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                    command_seconds = time.perf_counter() - began
                    _check(client, done.stdout.split()[-1].decode(), number)
                    drop_payloads(settings)
                    return Turn(seconds, command_seconds, watch.memory())

                def upload(api: Api, watch: _Watch) -> str:
                    size = archive.stat().st_size
                    with archive.open("rb") as file:
                        watch.sent = lambda: file.tell() / size
                        file_id = api.upload(archive.name, file, size)
                        watch.sent = lambda: 1.0
                    return str(api.post("/batches", {"input_file_id": file_id})["id"])

                def list_bucket(api: Api, _watch: _Watch) -> str:
                    return str(api.post("/batches", {"source_url": bucket.url})["id"])

                measured = {
                    "upload": _measure(rounds, lambda: take_turn(str(archive), upload, images), images),
                    "bucket": _measure(rounds, lambda: take_turn(bucket.url, list_bucket, objects), objects),
                }
    for name, found in measured.items():
        say(f"{name}: {found['ratio']:.2f} of the command's rate; memory {found['memory_growth_percent']} %")
    facts = {"images": images, "objects": objects, "database": both.facts}
    say(f"written to {write_measured('http-million', facts | measured, json, load_average)}")


def _measure(rounds: int, take_turn: Callable[[], Turn], images: int) -> dict[str, Any]:
    turns = []
    for number in range(1, rounds + 1):
        turns.append(turn := take_turn())
        say(
            f"round {number} of {rounds}: {images:,} images, {images / turn.api_seconds:,.0f} images/s, "
            f"the command {images / turn.command_seconds:,.0f}; memory, in KiB: {turn.api_kib}"
        )
    return {
        "images_per_second": round(median(images / turn.api_seconds for turn in turns), 1),
        "command_images_per_second": round(median(images / turn.command_seconds for turn in turns), 1),
        "ratio": round(median(turn.command_seconds / turn.api_seconds for turn in turns), 3),
        "memory_growth_percent": [turn.growth_percent() for turn in turns],
        "turns": [turn._asdict() for turn in turns],
    }


class _Watch:
    """A thread that looks at the API's memory while a batch is sent and taken in, as a context manager.

    These are two steps, because one process receives an upload, and another unpacks it.
    """

    def __init__(self, served: Served, images: int) -> None:
        self.sent: Callable[[], float] | None = None  # the share of the upload, if there is one
        self.batch_id: str | None = None
        self._served = served
        self._images = images
        self._looks: list[tuple[str, float, int]] = []  # the step, the share of it, and the memory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._looks.append(("intake", 1.0, self._served.memory_kib()))

    def memory(self) -> dict[str, tuple[int, int]]:
        """Return the memory at the beginning and at the end of each step, in KiB."""
        steps: dict[str, list[int]] = {}
        for step, share, kib in self._looks:
            if share >= _BEGINNING:
                steps.setdefault(step, []).append(kib)
        return {step: (found[0], found[-1]) for step, found in steps.items()}

    def _look(self) -> None:
        with self._served.connect() as api:
            while not self._over.wait(_LOOK_SECONDS):
                with contextlib.suppress(ValueError):  # the file was closed at this moment
                    step, share = self._progress(api)
                    self._looks.append((step, share, self._served.memory_kib()))

    def _progress(self, api: Api) -> tuple[str, float]:
        """Return the step, and the share of it that is done. Raises ValueError if the file is closed."""
        if self.batch_id is not None:
            return "intake", api.get(f"/batches/{self.batch_id}")["request_counts"]["total"] / self._images
        return "upload", 0.0 if self.sent is None else self.sent()


def _archive(folder: Path) -> Path:
    """Return a TAR of all images of the folder, made if it is missing."""
    path = folder.with_suffix(".tar")
    if not path.exists():
        say(f"writing {path}")
        temporary = path.with_suffix(".tmp")
        # Most files are hard links, which would otherwise be links in the archive, too.
        with tarfile.open(temporary, "w", dereference=True) as file:
            for image in list_images(folder):
                file.add(image, Path(image).relative_to(folder))
        temporary.rename(path)
    return path


def _check(client: Client, job_id: str, images: int) -> None:
    """Check that the job has so many images, and stop it. Raises RuntimeError."""
    found = client.status(job_id).total
    client.cancel(job_id)
    if found != images:
        raise RuntimeError(f"job {job_id} has {found:,} of {images:,} images")
