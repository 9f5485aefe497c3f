# Two images from one file. `producer` submits, follows, migrates and runs beat; it has no TensorFlow.
# `worker` classifies and trains. What they install is pinned by hash in requirements/.

FROM python:3.13-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/labelmill
ENV PATH=/opt/labelmill/bin:$PATH
WORKDIR /src

FROM build AS wheel
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels .

# The pins come first: a change of our own code does not install TensorFlow again.
FROM build AS producer-packages
COPY requirements/producer.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r producer.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps /wheels/*.whl

FROM build AS worker-packages
COPY requirements/worker.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r worker.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps /wheels/*.whl

FROM python:3.13-slim-trixie AS runtime
# The store's folder belongs to the user, and so does a volume that is mounted there for the first time.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/labelmill labelmill \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/labelmill /var/lib/labelmill/store
ENV PATH=/opt/labelmill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LABELMILL_HOME=/var/lib/labelmill
USER 10001:10001
WORKDIR /var/lib/labelmill
ENTRYPOINT ["labelmill"]
CMD ["--help"]

FROM runtime AS producer
COPY --from=producer-packages /opt/labelmill /opt/labelmill

FROM runtime AS worker
COPY --from=worker-packages /opt/labelmill /opt/labelmill
