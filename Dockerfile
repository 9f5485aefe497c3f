# The images, from one file. `producer` submits, follows, migrates, runs beat and the metrics; it has no TensorFlow.
# `api` also serves the HTTP API.
# `worker` classifies and trains; `worker-gpu` does so on NVIDIA GPUs. `worker-slim` classifies without TensorFlow.
# What they install is pinned by hash in requirements/. Nothing is compiled at run time: the root file system is
# read-only, so bytecode is made here.

FROM python:3.13-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
COPY requirements/build.txt /src/
# Not beside what the base image has installed: that may not be pip's to replace.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r /src/build.txt
RUN /opt/build/bin/uv venv /opt/labelmill
ENV PATH=/opt/build/bin:$PATH \
    VIRTUAL_ENV=/opt/labelmill
WORKDIR /src

FROM build AS wheel
COPY . .
# The commit, passed by deploy/compose/upgrade and restore. `labelmill --version` shows it.
ARG REVISION=
RUN printf '%s' "$REVISION" > labelmill/revision.txt \
 && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Our own code has its own small layer, so a new version does not bring TensorFlow again.
FROM build AS labelmill
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    uv pip install --no-deps /wheels/*.whl

FROM build AS producer-packages
COPY requirements/producer.txt .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes -r producer.txt

FROM build AS api-packages
COPY requirements/api.txt .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes -r api.txt
# Of the 400 services that botocore describes: S3, and those that it gets credentials from. This saves 17 MB. The
# tests of packages, and the sources of what is compiled: 4 MB. Pygments' lexers for languages other than Python: 7 MB.
RUN cd /opt/labelmill/lib/python3*/site-packages \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name 'sso*' ! -name signin -exec rm -r {} + \
 && find pygments/lexers -type f \
    ! -name '__init__*' ! -name '_mapping*' ! -name 'python*' ! -name 'special*' -delete \
 && find . -type d \( -name tests -o -name testing \) -prune -exec rm -r {} + \
 && find . -type f \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pyi' \) -delete

FROM build AS worker-packages
COPY requirements/worker.txt .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes -r worker.txt

FROM build AS worker-slim-packages
COPY requirements/worker-slim.txt .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes -r worker-slim.txt

FROM build AS worker-gpu-packages
COPY requirements/worker-gpu.txt .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes -r worker-gpu.txt

FROM python:3.13-slim-trixie AS runtime
# The folders belong to the user, and so do volumes that are mounted there for the first time.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/labelmill labelmill \
 && install --directory --owner=10001 --group=10001 --mode=0700 \
    /var/lib/labelmill /var/lib/labelmill/home /var/lib/labelmill/store
ENV PATH=/opt/labelmill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LABELMILL_HOME=/var/lib/labelmill/home
ARG REVISION=
LABEL org.opencontainers.image.title=labelmill \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=1.0.0rc1 \
      org.opencontainers.image.revision=$REVISION
USER 10001:10001
WORKDIR /var/lib/labelmill
ENTRYPOINT ["labelmill"]
CMD ["--help"]

FROM runtime AS producer
COPY --from=producer-packages /opt/labelmill /opt/labelmill
COPY --from=labelmill /opt/labelmill /opt/labelmill

FROM runtime AS api
COPY --from=api-packages /opt/labelmill /opt/labelmill
COPY --from=labelmill /opt/labelmill /opt/labelmill

FROM runtime AS worker
COPY --from=worker-packages /opt/labelmill /opt/labelmill
COPY --from=labelmill /opt/labelmill /opt/labelmill

FROM runtime AS worker-slim
COPY --from=worker-slim-packages /opt/labelmill /opt/labelmill
COPY --from=labelmill /opt/labelmill /opt/labelmill

FROM runtime AS worker-gpu
COPY --from=worker-gpu-packages /opt/labelmill /opt/labelmill
COPY --from=labelmill /opt/labelmill /opt/labelmill
