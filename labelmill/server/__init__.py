"""The HTTP API. Its resources have the names and fields of OpenAI's Files and Batch API, and some of our own.

`application` puts it together; `files`, `batches`, `results`, `events`, `classifications`, `images` and
`models` are its resources. `readings` reads a batch once for many requests. `running` runs it beside the
processes that take in the images of batches (`producer.intake`). Nothing here imports TensorFlow.
"""
