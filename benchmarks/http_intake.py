"""`python -m benchmarks.http_intake`: take in a large archive, and a prefix of a bucket, over HTTP.

Each takes turns with the command `submit` on the same images. No worker runs: the clock starts with the first
byte that is sent, or with the command, and stops when all images are committed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, NamedTuple

import typer

from benchmarks.harness.bucket import Bucket
from benchmarks.harness.images import MOST_DIGITS, list_images
from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.served import Api, ServedPipeline
from benchmarks.harness.setup import Json, Setup, WorkDir, kept_images, prepare, run
from labelmill.client import Client
from labelmill.console.terminal import say

#: Seconds between two looks at the API's memory.
_LOOK_SECONDS: Final = 0.25

#: The memory at this share of a step's time is compared with that at its end.
_BEGINNING: Final = 0.1


class Turn(NamedTuple):
    """One batch over HTTP, and one job of the command."""

    api_seconds: float
    command_seconds: float
    api_kib: dict[str, tuple[int, int]]  # the API's memory at a tenth of each step, and at its end

    def growth_percent(self) -> float:
        """Return by how much the memory has grown, in the step in which it has grown most."""
        return round(max(100 * (end / beginning - 1) for beginning, end in self.api_kib.values()), 2)


def main(
    images: Annotated[int, typer.Option(min=10, max=MOST_DIGITS, help="Images of the archive.")] = 1_000_000,
    objects: Annotated[int, typer.Option(min=10, max=MOST_DIGITS, help="Objects of the bucket.")] = 50_000,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 3,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Take in a large archive and a bucket over HTTP, in turns with the command."""
    archive = _archive(kept_images(work_dir, images))
    with Bucket(kept_images(work_dir, objects)) as bucket:
        more: dict[str, Any] = {"max_archive_members": images + 100, "reference_roots": (bucket.url,)}
        with (
            prepare(work_dir, images=images, processes=1, **more) as setup,
            ServedPipeline(setup, worker=False) as pipeline,
        ):
            measured = {}
            for name, count, source, begin in (
                ("upload", images, str(archive), partial(_upload, archive)),
                ("bucket", objects, bucket.url, partial(_list_bucket, bucket.url)),
            ):
                turns = []
                for number in range(1, rounds + 1):
                    say(f"{name}: round {number} of {rounds}: {count:,} images")
                    turns.append(_take_turn(setup, pipeline, source, begin, count))
                measured[name] = _figures(turns, count)
                say(f"{name}: {measured[name]}")
    facts = {"images": images, "objects": objects, "database": setup.databases.facts}
    write_result("http-intake", facts | measured, json)


def _take_turn(
    setup: Setup,
    pipeline: ServedPipeline,
    source: str,
    begin: Callable[[Api, _Watch], str],
    images: int,
) -> Turn:
    setup.settle()
    watch = _Watch(pipeline)
    with pipeline.connect() as api:
        began = time.perf_counter()
        batch_id = begin(api, watch)
        with watch.step("intake"):
            api.wait(batch_id, "in_progress", "completed")
        seconds = time.perf_counter() - began
    _check(pipeline.client, batch_id, images)
    setup.settle()
    began = time.perf_counter()
    command = [sys.executable, "-m", "labelmill", "submit", source]
    environment = os.environ | setup.settings.environment()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    command_seconds = time.perf_counter() - began
    _check(pipeline.client, done.stdout.split()[-1].decode(), images)
    setup.drop_payloads()
    return Turn(seconds, command_seconds, watch.memory)


def _upload(archive: Path, api: Api, watch: _Watch) -> str:
    with archive.open("rb") as file, watch.step("upload"):
        file_id = api.upload(archive.name, file, archive.stat().st_size)
    return str(api.post("/batches", {"input_file_id": file_id})["id"])


def _list_bucket(url: str, api: Api, _watch: _Watch) -> str:
    return str(api.post("/batches", {"source_url": url})["id"])


def _figures(turns: list[Turn], images: int) -> dict[str, Any]:
    return {
        "images_per_second": round(median(images / turn.api_seconds for turn in turns), 1),
        "command_images_per_second": round(median(images / turn.command_seconds for turn in turns), 1),
        "ratio": round(median(turn.command_seconds / turn.api_seconds for turn in turns), 3),
        "memory_growth_percent": [turn.growth_percent() for turn in turns],
        "turns": [turn._asdict() for turn in turns],
    }


class _Watch:
    """Look at the API's memory while a batch is sent and taken in.

    These are two steps, because one process receives an upload, and another unpacks it.
    """

    def __init__(self, pipeline: ServedPipeline) -> None:
        self.memory: dict[str, tuple[int, int]] = {}  # KiB at the beginning and at the end, by step
        self._pipeline = pipeline

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Watch the memory in the body of a `with`."""
        looks: list[int] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_SECONDS):
                looks.append(self._pipeline.api_memory_kib())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        looks.append(self._pipeline.api_memory_kib())
        self.memory[name] = looks[int(_BEGINNING * len(looks))], looks[-1]


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


if __name__ == "__main__":
    run(main)
