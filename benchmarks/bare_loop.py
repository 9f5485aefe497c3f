"""The bare loop that Labelmill is measured against: the same stages, without queue or ledger protocol.

It is the limit of the machine, as far as we know it: each process takes its share of the files, reads,
decodes with the pipeline's own decoders, predicts on full batches, and writes rows into a table of the same
shape, in the format that the database takes in quickest. There is one process more than cores, so that the
cores have work while one waits for its commit. It has no claims, checks no names and expects no errors: if a
process dies, its work is lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from benchmarks.harness.images import list_images
from benchmarks.harness.model import TrainedModel
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.models.model import InputSpec
from jobs.models.runtime import Runtime

#: Images in one call of the model, and rows in one transaction. Processor time on one core: calls of 512 take
#: 15.4 µs per image, of 1,024 14.3, of 2,048 13.9.
BATCH: Final = 2_048

#: Processes beyond the cores.
MORE_PROCESSES: Final = 1

#: So many bytes are read first, which is all of a small file. A larger file's size is asked for: a buffer
#: that is too large makes reading a photograph take four times as long.
_FIRST_BYTES: Final = 4096

_COLUMNS: Final = '(job_id, "index", name, label, confidence)'
_COPY: Final = f"COPY predictions {_COLUMNS} FROM STDIN WITH (FORMAT BINARY)"
_INSERT: Final = f"INSERT INTO predictions {_COLUMNS} VALUES (?, ?, ?, ?, ?)"

#: What PostgreSQL calls the columns' types: a binary COPY converts nothing.
_TYPES: Final = ("varchar", "int8", "text", "text", "float4")

Row = tuple[str, int, str, str, float]
Pixels = Any  # uint8 of (n, *spec.shape)
#: The model: takes pixels; returns the index of each image's class, and its confidence.
Network = Callable[[Pixels], tuple[list[int], list[float]]]


@dataclass(frozen=True)
class Way:
    """How a process computes. The default is the quickest for small digits."""

    runtime: Runtime = Runtime.KERAS
    batch: int = BATCH
    processes: int | None = None  # default: one more than cores
    threads: int = 1  # of the network
    decoders: int = 0  # threads that decode the next batches meanwhile


DEFAULT_WAY: Final = Way()


@dataclass(frozen=True)
class Plan:
    """What a process needs to begin."""

    url: str
    model: Path  # in the format of the runtime
    classes: tuple[str, ...]
    spec: InputSpec
    processes: int
    number: int  # of this process; the first is 0
    way: Way


def plans(url: str, model: TrainedModel, cores: int, way: Way = DEFAULT_WAY) -> list[Plan]:
    """Return a plan for each process that keeps `cores` cores busy."""
    processes = way.processes or cores + MORE_PROCESSES
    path = model.path if way.runtime is Runtime.KERAS else model.path.with_suffix(f".{way.runtime.suffix}")
    return [
        Plan(url, path, model.row.classes, model.row.input_spec, processes, number, way)
        for number in range(processes)
    ]


class Looped(NamedTuple):
    """One pass over all files."""

    job_id: str
    seconds: float


class BareLoop:
    """Run warm processes that wait for `classify`, as a context manager."""

    def __init__(self, plans: list[Plan]) -> None:
        self._plans = plans
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        # Spawned, not forked: TensorFlow does not survive a fork.
        context = multiprocessing.get_context("spawn")
        try:
            for plan in self._plans:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(plan, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """The ids of its processes."""
        return [process.pid for process in self._processes if process.pid]

    def classify(self, folder: Path) -> Looped:
        """Classify all images below the folder, once. Raises RuntimeError if a process dies."""
        job_id = new_id()
        began = time.perf_counter()
        for pipe in self._pipes:
            pipe.send((folder, job_id))
        self._answers()
        return Looped(job_id, time.perf_counter() - began)

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
            process.join()
        self._pipes.clear()
        self._processes.clear()

    def _answers(self) -> None:
        try:
            for pipe in self._pipes:
                pipe.recv()
        except EOFError:
            raise RuntimeError("a process of the bare loop died; its error is above") from None


def _serve(plan: Plan, pipe: Connection) -> None:
    """Classify this process's share of each folder that comes, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    network = _load(plan)
    with contextlib.closing(Ledger(plan.url)) as database:
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                folder, job_id = pipe.recv()
                _classify_share(plan, folder, job_id, network, database)
                pipe.send(None)


def _load(plan: Plan) -> Network:
    """Load the model, and let it compute once."""
    import numpy as np

    network = _load_keras(plan) if plan.way.runtime is Runtime.KERAS else _load_artefact(plan)
    network(np.zeros((plan.way.batch, *plan.spec.shape), np.uint8))
    return network


def _load_artefact(plan: Plan) -> Network:
    import numpy as np

    from worker.predicting.networks.loading import load_network

    loaded = load_network(plan.way.runtime, plan.model.read_bytes(), plan.way.threads)
    padded = np.zeros((plan.way.batch, *plan.spec.shape), np.uint8)

    def network(pixels: Pixels) -> tuple[list[int], list[float]]:
        padded[: len(pixels)] = pixels  # for another size, OpenVINO would compile again
        scores = loaded.run(padded)[: len(pixels)]
        return scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist()

    return network


def _load_keras(plan: Plan) -> Network:
    """Load the model in Keras, traced for any number of images."""
    from worker.predicting.tensorflow_runtime import keras, set_threads, tf

    set_threads(plan.way.threads)
    model = keras.saving.load_model(plan.model, compile=False)

    def answer(pixels: Pixels) -> Any:
        scores = tf.cast(model(pixels, training=False), tf.float32)
        return tf.argmax(scores, axis=1), tf.reduce_max(scores, axis=1)

    signature = [tf.TensorSpec((None, *plan.spec.shape), tf.uint8)]
    traced = tf.function(answer, input_signature=signature, autograph=False)

    def network(pixels: Pixels) -> tuple[list[int], list[float]]:
        labels, confidence = traced(pixels)
        return labels.numpy().tolist(), confidence.numpy().tolist()

    return network


def _classify_share(plan: Plan, folder: Path, job_id: str, network: Network, database: Ledger) -> None:
    paths = list_images(folder)
    first = len(paths) * plan.number // plan.processes
    last = len(paths) * (plan.number + 1) // plan.processes
    into = _insert if database.is_sqlite else _copy
    batches = [
        range(start, min(start + plan.way.batch, last)) for start in range(first, last, plan.way.batch)
    ]
    rows: list[Row] = []
    decoded = _decoded([[paths[place] for place in batch] for batch in batches], plan)
    for batch, pixels in zip(batches, decoded, strict=True):
        labels, confidences = network(pixels)
        rows += [
            (job_id, index, paths[index], plan.classes[label], confidence)
            for index, label, confidence in zip(batch, labels, confidences, strict=True)
        ]
        if len(rows) >= BATCH or batch is batches[-1]:
            with database.transaction() as connection:
                into(connection.connection.driver_connection, rows)
            rows = []


def _decoded(batches: list[list[str]], plan: Plan) -> Iterator[Pixels]:
    """Yield the pixels of each batch. The plan's decoders are so many batches ahead."""
    decode = partial(_decode_batch, spec=plan.spec)
    if not plan.way.decoders:
        yield from map(decode, batches)
        return
    with ThreadPoolExecutor(plan.way.decoders) as pool:
        ahead: deque[Future[Pixels]] = deque()
        for batch in batches:
            ahead.append(pool.submit(decode, batch))
            if len(ahead) > plan.way.decoders:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decode_batch(paths: list[str], spec: InputSpec) -> Pixels:
    import numpy as np

    from worker.predicting.decode import decode
    from worker.predicting.fast_png import decode_together
    from worker.predicting.pictures import DEFAULT_LIMITS

    contents = list(map(_read, paths))
    together, pixels = decode_together(contents, spec, DEFAULT_LIMITS)
    if len(together) < len(paths):
        decoded = pixels
        pixels = np.empty((len(paths), *spec.shape), np.uint8)
        pixels[together] = decoded
        for place in set(range(len(paths))).difference(together):
            pixels[place] = decode(contents[place], spec)
    return pixels


def _read(path: str) -> bytes:
    """Read a whole file."""
    file = os.open(path, os.O_RDONLY)
    content = os.pread(file, _FIRST_BYTES, 0)
    if len(content) == _FIRST_BYTES:
        content = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    return content


def _copy(driver: Any, rows: list[Row]) -> None:
    with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.set_types(_TYPES)
        for row in rows:
            copy.write_row(row)


def _insert(driver: Any, rows: list[Row]) -> None:
    driver.executemany(_INSERT, rows)
