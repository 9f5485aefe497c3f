"""Labelmill beside other ways to classify the same files with the same model into the same database.

Each is set up as an expert in the tool would do it on one machine with so many cores:

- Labelmill: as users run it, with a worker process for each core.
- the bare loop: no tool, the limit (`benchmarks.bare_loop`).
- Celery, one task per image: a message for each path, a worker that prefetches thousands, a process with one
  thread for each core, the model traced for a single image, one INSERT per task, no results kept.
- celery-batches: the same tasks, up to 512 together, one call of the model and one COPY for each batch.
- Ray Data: `map_batches` over paths by 2,048, an actor with the model for each core, one COPY for each batch.
- Daft: a class over paths by 2,048, a process with the model for each core, one COPY for each batch.
- Keras: `predict` by 2,048 over `tf.data`, which reads and decodes batch by batch by TensorFlow's operations,
  on all cores; one COPY at the end.

With `--network`, a network of `keras.applications` classifies photographs. Only Labelmill, Ray Data and Daft
take part, and Labelmill compiles the model beforehand.

The last five run in a separate environment, with the versions that celery-batches and Ray allow.
"""
