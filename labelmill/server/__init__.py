"""The HTTP API. Its resources have the names and fields of OpenAI's Files and Batch API, and some of our own.

`application` puts it together, `files` and `batches` are its resources, and `running` runs it beside the
process that takes in the images (`producer.intake`). Nothing here imports TensorFlow.
"""
