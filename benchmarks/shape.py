"""Measure what the pipeline's shape costs by itself: the bare loop with a producer and payloads.

    python -m benchmarks.shape --pictures photographs

One process reads the files, packs them into payloads, hashes and stores these as the pipeline does. The
others read, verify and unpack them, and continue like the bare loop. There are no claims, no counters, no
messages but lines through a pipe, and no checks of files or names: the pipeline cannot be faster than this,
whatever its code does. It takes turns with the pipeline and the bare loop. Each turn also reports the
processor time of each part, as the kernel counts it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, NamedTuple

import typer

from benchmarks.bare_loop import BATCH, BareLoop, Looped, Plan, classify, load, plans, read, write
from benchmarks.check import check_rows
from benchmarks.databases import Work, databases
from benchmarks.images import ALL_IMAGES, Pictures, list_images, make_images
from benchmarks.model import TrainedModel, train_once
from benchmarks.pipeline import Pipeline
from benchmarks.processes import named, parent_of, processor_seconds
from benchmarks.report import print_spreads, spread, write_measured
from benchmarks.setup import (
    PROCESSES,
    RESULTS,
    Json,
    WorkDir,
    drop_developer_settings,
    drop_payloads,
    kept_folder,
    run,
    settings_in,
    settle,
    short_folder,
)
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage.payloads import pack_payload, payload_digest, payload_key, read_payload
from jobs.storage.store import Store
from labelmill.console.terminal import Console, report_errors, say
from producer.chunking import CHUNK_BYTES, FIRST_IMAGES

ROUNDS: Final = 5

#: After the last row a worker still acknowledges its message, and others find that nothing is due.
_AFTERWARDS_SECONDS: Final = 0.15

#: The parts of a side, and a function for the present processes of each.
_Parts = dict[str, Callable[[], Collection[int]]]


class _Chunk(NamedTuple):
    """What a worker needs to know about a payload."""

    job_id: str
    first: int
    images: int
    key: str
    digest: str


class Shape:
    """Run warm workers that wait for `classify`, as a context manager."""

    def __init__(self, plans: list[Plan], settings: Settings) -> None:
        self._plans = plans
        self._settings = settings
        self._stack = contextlib.ExitStack()
        self._chunks: Any = None
        self._done: Any = None
        self.pids: list[int] = []

    def __enter__(self) -> Shape:
        context = multiprocessing.get_context("spawn")
        # A pipe each way: a worker owns the chunk that it takes.
        self._chunks, self._done = context.SimpleQueue(), context.SimpleQueue()
        for plan in self._plans:
            arguments = (plan, self._settings.store, self._chunks, self._done)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self.pids.append(process.pid or 0)
            self._stack.callback(process.join)
            self._stack.callback(process.terminate)
        for _ in self._plans:
            self._done.get()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def classify(self, folder: Path) -> Looped:
        """Classify all images below the folder, once; this process is the producer."""
        job_id, store = new_id(), Store(self._settings.store)
        began = time.perf_counter()
        chunks = 0
        for first, names, contents in _chunks_of(list_images(folder), self._settings.chunk_images):
            key = payload_key(job_id, new_id())
            pieces = pack_payload(names, contents)
            store.put(key, *pieces)
            self._chunks.put(_Chunk(job_id, first, len(names), key, payload_digest(*pieces)))
            chunks += 1
        for _ in range(chunks):
            self._done.get()
        return Looped(job_id, time.perf_counter() - began)


def _chunks_of(paths: list[str], chunk_images: int) -> Iterator[tuple[int, list[str], list[bytes]]]:
    """Yield each chunk: its first index, names and contents. Chunks are as large as the pipeline's."""
    first, size = 0, 0
    room = min(FIRST_IMAGES, chunk_images)
    contents: list[bytes] = []
    for place, path in enumerate(paths):
        content = read(path)
        if contents and (len(contents) == room or size + len(content) > CHUNK_BYTES):
            yield first, paths[first:place], contents
            room = min(2 * room, chunk_images)
            first, size, contents = place, 0, []
        contents.append(content)
        size += len(content)
    yield first, paths[first:], contents


def _work(plan: Plan, store_url: str, chunks: Any, done: Any) -> None:
    """Work on chunks until the process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    network, store = load(plan), Store(store_url)
    with contextlib.closing(Ledger(plan.url)) as database:
        done.put(None)
        while True:
            chunk: _Chunk = chunks.get()
            payload = read_payload(store, chunk.key, chunk.digest)
            rows = []
            for start in range(0, chunk.images, BATCH):
                part = slice(start, start + BATCH)
                contents = [content for content in payload.contents[part] if isinstance(content, bytes)]
                rows += classify(
                    plan, chunk.job_id, chunk.first + start, payload.names[part], contents, network
                )
            write(database, rows)
            done.put(None)


class _Turn(NamedTuple):
    """One job of one side."""

    job_id: str
    seconds: float
    processor: dict[str, float]  # seconds on a core, by part


class _Round(NamedTuple):
    """One turn of each side."""

    pipeline: _Turn
    shape: _Turn
    bare_loop: _Turn


@report_errors
def main(
    work: Annotated[Work, typer.Option(help="Which database the rows go to.")] = Work.POSTGRESQL,
    pictures: Annotated[Pictures, typer.Option(help="What is on the images.")] = Pictures.DIGITS,
    images: Annotated[int | None, typer.Option(min=1, help="How many images. Left out: all of them.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many turns count; one more comes first.")] = ROUNDS,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure images per second of the pipeline, of its shape alone, and of the bare loop, in turns."""
    drop_developer_settings()
    load_average = os.getloadavg()[0]
    kept, images = kept_folder(work_dir), images or ALL_IMAGES[pictures]
    model = train_once(kept)
    folder = make_images(pictures, images, Settings.load(home=kept / "model"), kept)
    measured = _measure(work, model, folder, images, rounds)
    name = f"shape-{work if pictures == Pictures.DIGITS else pictures}"
    _print(name, images, measured)
    found = {
        "images": images,
        "images_per_second": {
            side: spread([images / getattr(one, side).seconds for one in measured]) for side in _Round._fields
        },
        "efficiency": {
            side: round(median(one.bare_loop.seconds / getattr(one, side).seconds for one in measured), 4)
            for side in ("pipeline", "shape")
        },
        "processor_us_per_image": {
            side: {part: spread(figures) for part, figures in _microseconds(side, images, measured).items()}
            for side in _Round._fields
        },
        "rounds_seconds": [{side: turn.seconds for side, turn in one._asdict().items()} for one in measured],
    }
    say(f"written to {write_measured(name, found, json, load_average)}")


def _measure(work: Work, model: TrainedModel, folder: Path, images: int, rounds: int) -> list[_Round]:
    with short_folder() as home, databases(work, home) as both:
        settings = settings_in(home, both.pipeline, PROCESSES)
        bare = plans(both.bare_loop, model, PROCESSES)
        with (
            Pipeline(settings, model) as pipeline,
            Shape(bare[:PROCESSES], settings) as shape,
            BareLoop(bare) as bare_loop,
        ):
            pipeline.warm_up(folder)
            ours = pipeline.processes()
            producer: _Parts = {"producer": lambda: [os.getpid()]}
            others: _Parts = {
                "parent": lambda: [parent_of(ours[0])],
                "Valkey": lambda: named("valkey-server"),
            }
            database: _Parts = {"PostgreSQL": lambda: named("postgres")} if work == Work.POSTGRESQL else {}
            sides: list[tuple[Callable[[Path], Any], _Parts]] = [
                (pipeline.classify, producer | {"workers": lambda: ours} | others | database),
                (shape.classify, producer | {"workers": lambda: shape.pids} | database),
                (bare_loop.classify, {"workers": lambda: bare_loop.pids} | database),
            ]
            measured: list[_Round] = []
            for number in range(rounds + 1):
                turns = []
                for classify_all, parts in sides:
                    if "producer" in parts:
                        # Just before, because the host takes back memory that is idle for a while.
                        drop_payloads(settings)
                    settle(both.settle)
                    turns.append(_turn(classify_all, folder, parts))
                one = _Round(*turns)
                for job in ((both.pipeline, one.pipeline.job_id), (both.bare_loop, one.shape.job_id)):
                    check_rows(job, (both.bare_loop, one.bare_loop.job_id), images=images)
                counted = f"round {number} of {rounds}" if number else "not counted"
                say(
                    f"{counted}: "
                    + ", ".join(
                        f"{side} {images / turn.seconds:,.0f}" for side, turn in one._asdict().items()
                    )
                )
                if number:
                    measured.append(one)
    return measured


def _turn(classify_all: Callable[[Path], Any], folder: Path, parts: _Parts) -> _Turn:
    before = _processor(parts)
    done = classify_all(folder)
    time.sleep(_AFTERWARDS_SECONDS)
    after = _processor(parts)
    processor = {
        part: sum(seconds - before[part].get(pid, 0.0) for pid, seconds in pids.items())
        for part, pids in after.items()
    }
    return _Turn(done.job_id, done.seconds, processor)


def _processor(parts: _Parts) -> dict[str, dict[int, float]]:
    """Return the seconds on a core of each process of each part, since it began."""
    return {part: {pid: processor_seconds(pid) for pid in pids()} for part, pids in parts.items()}


def _microseconds(side: str, images: int, measured: list[_Round]) -> dict[str, list[float]]:
    """Return the microseconds of processor time per image, by part, one figure per round."""
    turns: list[_Turn] = [getattr(one, side) for one in measured]
    return {part: [1e6 * turn.processor[part] / images for turn in turns] for part in turns[0].processor}


def _print(name: str, images: int, measured: list[_Round]) -> None:
    console = Console(highlight=False)
    rows = {
        f"{side.replace('_', ' ')}, images/s": [images / getattr(one, side).seconds for one in measured]
        for side in _Round._fields
    }
    rows |= {
        "pipeline's efficiency": [one.bare_loop.seconds / one.pipeline.seconds for one in measured],
        "its shape's": [one.bare_loop.seconds / one.shape.seconds for one in measured],
        "pipeline over shape": [one.shape.seconds / one.pipeline.seconds for one in measured],
    }
    print_spreads(f"{name}: {images:,} images, {len(measured)} rounds", rows, console)
    shares = {
        f"{side.replace('_', ' ')}: {part}": figures
        for side in _Round._fields
        for part, figures in _microseconds(side, images, measured).items()
    }
    print_spreads("processor time, µs per image", shares, console)


if __name__ == "__main__":
    run(main)
