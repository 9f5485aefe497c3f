"""Labelmill beside other ways to classify the same files with the same model into the same database.

Each is set up as somebody who knows the tool would do it on one machine with so many cores:

- Labelmill: as its users have it, with a worker process for each core (`benchmarks.pipeline`).
- the bare loop: no tool at all, the limit (`benchmarks.bare_loop`).
- Celery, a task an image: a message for each path, thousands of them taken at once by the worker, a process
  for each core on one thread, the model traced for a single image, one INSERT a task, no results kept.
- celery-batches: the same tasks, gathered up to 512, one call of the model and one COPY for each batch.
- Ray Data: `map_batches` over paths by 2,048, the model held by an actor for each core, one COPY a batch.
- Keras: `predict` by 2,048 over `tf.data`, which reads and decodes batch by batch by TensorFlow's operations,
  on all cores; one COPY at the end.

The last four run in an environment of their own, with the versions that celery-batches and Ray allow.
"""
