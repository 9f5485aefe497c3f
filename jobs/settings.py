"""Settings, read from `LABELMILL_*` once at start. docs/reference/settings.md documents each."""

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
            raise SettingsError(f"{variable}_FILE: {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{variable}_FILE: {path} is not text") from None
        if not found[name]:
            raise SettingsError(f"{variable}_FILE: {path} is empty")
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

    #: The state folder: everything the embedded stack writes.
    home: Annotated[Path, AfterValidator(_home)] = Field(default=Path("~/.labelmill"), validate_default=True)
    ledger_url: Annotated[str, AfterValidator(check_ledger_url)] | None = Field(default=None, repr=False)
    broker_url: Annotated[str, AfterValidator(check_broker_url)] | None = Field(default=None, repr=False)
    store_url: Annotated[str, AfterValidator(check_store_url)] | None = Field(default=None, repr=False)
    #: With these two, the commands for jobs use the HTTP API instead of ledger, broker and store.
    api_url: Annotated[str, AfterValidator(check_api_url)] | None = None
    api_key: Annotated[str, AfterValidator(check_api_key)] | None = Field(default=None, repr=False)
    mnist_dir: Path | None = None

    chunk_images: int = Field(default=16384, ge=1, le=100_000)
    #: How long a worker owns a claimed chunk. The work of a dead worker is repeated after this time.
    lease_seconds: float = Field(default=60.0, ge=1.0, le=86_400.0)
    #: How many processes of a worker classify, each with its own model.
    processes: int = Field(default_factory=usable_cores, ge=1, le=1024)
    #: The format of the logs of worker, trainer and beat. JSON is one object per line.
    log_format: Literal["text", "json"] = "text"

    max_image_bytes: Count = ImageLimits().max_bytes
    max_image_pixels: Count = ImageLimits().max_pixels
    max_image_frames: Count = ImageLimits().max_frames
    image_formats: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_image_formats)
    ] = IMAGE_FORMATS
    #: How long decoding an image may take.
    image_seconds: float = Field(default=10.0, gt=0.0, le=86_400.0)
    max_job_images: Count = JobLimits().max_images
    max_job_bytes: Count = JobLimits().max_bytes
    max_archive_members: Count = ArchiveLimits().max_members
    max_archive_expansion: Count = ArchiveLimits().max_expansion
    #: Images may be submitted by reference if they are below one of these paths and URLs.
    reference_roots: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_reference_roots)
    ] = Field(default=(), repr=False)

    #: The names under which the HTTP API is served, besides loopback names and addresses.
    api_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_host_names)] = ()
    #: The web pages that may use the HTTP API from a browser (CORS).
    api_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)] = ()
    #: Requests per second with one key; as many may come at once.
    api_rate: Count = 500
    #: Uploads at the same time with one key.
    api_uploads: Count = 4
    #: Hosts, with a port or without, that users may name in URLs although their addresses are private.
    private_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = ()

    #: How this process is deployed. The compose file sets it, so that `labelmill doctor` names its commands.
    deployment: Literal["compose"] | None = None

    #: Every day, beat purges the payloads of jobs, or whole jobs, that finished more than this many days ago.
    keep_payloads_days: float | None = Field(default=None, ge=0.0, le=MAX_DAYS)
    keep_jobs_days: float | None = Field(default=None, ge=0.0, le=MAX_DAYS)

    #: The share of the corrected images that no model is trained on.
    live_share: Share = 0.3
    #: The share of a job's chunks that the challenger classifies too.
    shadow_share: Share = 0.1

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
