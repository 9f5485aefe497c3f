"""The protocol of the other ways: they get their places, start, and classify all images twice.

A way runs in its own process and uses nothing of Labelmill but `benchmarks`. Its answer is a line of JSON on
stdout; `benchmarks.side_by_side.ways` reads it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from typing import Any, Final

#: The packages whose versions decide the figures.
_PACKAGES: Final = frozenset(
    (
        "celery",
        "celery-batches",
        "daft",
        "keras",
        "kombu",
        "numpy",
        "pillow",
        "psycopg",
        "pyarrow",
        "ray",
        "tensorflow",
    )
)

COLUMNS: Final = '(job_id, "index", name, label, confidence)'
COPY: Final = f"COPY predictions {COLUMNS} FROM STDIN"

Row = tuple[str, int, str, str, float]

#: Classifies all images below a folder under a job's id, and commits a row for each. Returns how many of the
#: seconds were its start, if it starts each time.
Classify = Callable[[str, str], float]


@dataclass(frozen=True)
class Places:
    """The URLs and paths that a way needs."""

    database: str  # the URL of a PostgreSQL database with an empty table `predictions`
    broker: str  # the URL of a Valkey that is up
    model: str  # path of the .keras file
    classes: list[str]  # by the model's outputs
    shape: list[int]  # of its input
    logits: bool  # its outputs are logits, not probabilities
    processes: int  # as many as cores
    scratch: str  # a folder for its own files
    folder: str  # of the images
    job_ids: list[str]  # of the passes; the last one counts

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Places:
        """Return the places of a line from `to_json`."""
        return cls(**json.loads(line))


def answer(way: Callable[[Places], AbstractContextManager[Classify]]) -> None:
    """Start the way, classify the images once per job, and write the seconds of the last pass."""
    import psycopg

    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between
    places = Places.from_json(sys.argv[1])
    # By time.perf_counter, which all processes of a Linux machine share.
    took: dict[str, Any] = {
        "packages": {each.name: each.version for each in distributions() if each.name.lower() in _PACKAGES}
    }
    with way(places) as classify:
        took["ready"] = time.perf_counter()
        for job_id in places.job_ids:
            with psycopg.connect(places.database, autocommit=True) as connection:
                connection.execute("CHECKPOINT")
            os.sync()
            began = time.perf_counter()
            took["start"] = classify(places.folder, job_id)
            took["work"] = time.perf_counter() - began - took["start"]
    stdout.write(json.dumps(took))


def batch_size(places: Places) -> int:
    """Return the number of images per batch. Those of photographs are small, so that all actors have work."""
    return 32 if len(places.shape) > 2 else 2_048


def find_files(folder: str) -> list[str]:
    """Return the paths of all files below the folder, in any order."""
    return [f"{path}/{name}" for path, _, names in os.walk(folder) for name in names]


def load_network(places: Places, *, threads: int) -> Callable[[Any], Any]:
    """The model as a traced function: uint8 of (n, *shape) in, probabilities as float32 of (n, classes) out.

    Calling a Keras model untraced takes several times as long, and `predict` is for many batches.
    """
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = keras.saving.load_model(places.model, compile=False)

    def probabilities(pixels: Any) -> Any:
        found = model(pixels, training=False)
        return tf.nn.softmax(found) if places.logits else found

    signature = [tf.TensorSpec((None, *places.shape), tf.uint8)]
    traced = tf.function(probabilities, input_signature=signature)

    def scores(pixels: Any) -> Any:
        return traced(pixels).numpy()

    scores(np.zeros((1, *places.shape), np.uint8))
    return scores


def decode(path: str, shape: list[int]) -> Any:
    """The picture as an array of this shape, by Pillow: grey, or in colour if the shape has channels."""
    import numpy as np
    from PIL import Image

    height, width, *channels = shape
    with Image.open(path) as image:
        picture = image.convert("RGB" if channels else "L")
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def rows_of(job_id: str, numbered: Iterable[tuple[int, str]], scores: Any, classes: list[str]) -> list[Row]:
    """A row for each (index, path), from the probabilities in the same order."""
    best, confidence = scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist()
    return [
        (job_id, index, path, classes[label], likely)
        for (index, path), label, likely in zip(numbered, best, confidence, strict=True)
    ]


def copy_rows(connection: Any, rows: Iterable[Row]) -> None:
    """Writes them in one COPY and commits."""
    with connection.cursor() as cursor, cursor.copy(COPY) as copy:
        for row in rows:
            copy.write_row(row)
    connection.commit()


def classify_batch(
    network: Callable[[Any], Any],
    connection: Any,
    places: Places,
    job_id: str,
    numbered: list[tuple[int, str]],
) -> None:
    """Classify a batch of (index, path), and write its rows in one COPY."""
    import numpy as np

    scores = network(np.stack([decode(path, places.shape) for _, path in numbered]))
    copy_rows(connection, rows_of(job_id, numbered, scores, places.classes))


class Actor:
    """What one process of a data engine holds: the model, and a connection to the database."""

    def __init__(self, places: Places, job_id: str) -> None:
        import psycopg

        self._places = places
        self._job_id = job_id
        self._network = load_network(places, threads=1)
        self._connection = psycopg.connect(places.database)
        #: When it was up, by time.time.
        self.ready_at = time.time()

    def classify(self, indices: list[int], paths: list[str]) -> None:
        """Classify one batch, and write its rows."""
        numbered = list(zip(indices, paths, strict=True))
        classify_batch(self._network, self._connection, self._places, self._job_id, numbered)
