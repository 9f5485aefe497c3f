"""`keras.Model.predict` over a `tf.data` pipeline, in one process whose TensorFlow has all cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.side_by_side.talk import Classify, Places, copy_rows, find_files, rows_of, serve

BATCH: Final = 512


@contextmanager
def keras_predict(places: Places) -> Iterator[Classify]:
    """Files are read and decoded by TensorFlow's own operations, as many at once as it finds best."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras
    import psycopg
    import tensorflow as tf

    model = keras.saving.load_model(places.model, compile=False)

    def read(path: Any) -> Any:
        pixels = tf.io.decode_png(tf.io.read_file(path), channels=1)
        return tf.ensure_shape(pixels, (28, 28, 1))[:, :, 0]

    def classify(folder: str, job_id: str) -> float:
        paths = find_files(folder)
        pictures = (
            tf.data.Dataset.from_tensor_slices(paths)
            .map(read, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(BATCH)
            .prefetch(tf.data.AUTOTUNE)
        )
        scores = model.predict(pictures, verbose=0)
        copy_rows(connection, rows_of(job_id, enumerate(paths), scores, places.classes))
        return 0.0

    with psycopg.connect(places.database) as connection:
        yield classify


if __name__ == "__main__":
    serve(keras_predict)
