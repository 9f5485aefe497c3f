"""The HTTP API under load: `python -m benchmarks.http_api million`, `small` or `latency`.

`million` compares taking in a large archive, and a prefix of a bucket, with the command `submit`; `small`
sends requests of one image from many clients; `latency` times reads beside a large job, and in a job of ten
million images.
"""
