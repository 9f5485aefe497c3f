"""Settings, read from `LABELMILL_*` once at start. docs/reference/settings.md documents each."""

from __future__ import annotations

import difflib
import hashlib
import os
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL

from jobs.cores import usable_cores
from jobs.errors import SettingsError
from jobs.evaluation import GateLimits
from jobs.limits import IMAGE_FORMATS, ArchiveLimits, ImageLimits, JobLimits
from jobs.urls import check_broker_url, check_ledger_url, check_store_url

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
SECRETS: Final = ("ledger_url", "broker_url", "store_url")


def _home(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path} names a user who has no home here") from None


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
            raise SettingsError(f"{variable}_FILE: {path} is no text") from None
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
    chosen = tuple("JPEG" if name.upper() == "JPG" else name.upper() for name in names)
    for name in chosen:
        if name not in IMAGE_FORMATS:
            raise ValueError(f"names {name}; what can be allowed is {', '.join(IMAGE_FORMATS)}")
    if not chosen:
        raise ValueError("names no format, so that no image would be classified")
    return chosen


def _reference_roots(roots: tuple[str, ...]) -> tuple[str, ...]:
    for root in roots:
        if "://" not in root and not os.path.isabs(root):  # noqa: PTH117 -- a URL is no path
            raise ValueError(f"names {root}; a root is an absolute path, or a URL such as s3://bucket/images")
    return roots


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
        description="The state folder: everything the embedded stack writes.",
    )
    ledger_url: Annotated[str | None, AfterValidator(lambda url: url and check_ledger_url(url))] = Field(
        default=None,
        repr=False,
        description="The SQL database. Left out: a SQLite file in the state folder.",
    )
    broker_url: Annotated[str | None, AfterValidator(lambda url: url and check_broker_url(url))] = Field(
        default=None,
        repr=False,
        description="The Redis that carries messages. Left out: a Valkey on a Unix socket, started by "
        "`labelmill up`.",
    )
    store_url: Annotated[str | None, AfterValidator(lambda url: url and check_store_url(url))] = Field(
        default=None,
        repr=False,
        description="Where payloads and model files are kept, as an fsspec URL every worker reaches. "
        "Left out: a folder in the state folder.",
    )
    mnist_dir: Path | None = Field(
        default=None, description="A folder with MNIST's four IDX files, gzip or not."
    )
    chunk_images: int = Field(
        default=16384,
        ge=1,
        le=100_000,
        description="How many images a chunk, the unit of work, has at the most.",
    )
    lease_seconds: float = Field(
        default=60.0,
        ge=1.0,
        le=86_400.0,
        description="How long a worker owns a chunk it has claimed; a dead worker's work is done again "
        "after this time.",
    )
    processes: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=1024,
        description="How many processes of a worker classify, each with its own model. "
        "Left out: one per core.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="How worker, trainer and beat write their logs: `text`, or `json`, one object a line.",
    )
    max_image_bytes: int = Field(
        default=ImageLimits().max_bytes, ge=1, description="Bytes an image's file may have."
    )
    max_image_pixels: int = Field(
        default=ImageLimits().max_pixels, ge=1, description="Pixels an image may have: width times height."
    )
    max_image_frames: int = Field(
        default=ImageLimits().max_frames, ge=1, description="Frames an animated image may have."
    )
    image_formats: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_image_formats)
    ] = Field(
        default=IMAGE_FORMATS, description="The formats that are decoded, by their bytes; a comma between."
    )
    image_seconds: float = Field(
        default=10.0, gt=0.0, le=86_400.0, description="Seconds an image may take to be decoded."
    )
    max_job_images: int = Field(default=JobLimits().max_images, ge=1, description="Images a job may have.")
    max_job_bytes: int = Field(
        default=JobLimits().max_bytes, ge=1, description="Bytes all images of a job may have together."
    )
    max_archive_members: int = Field(
        default=ArchiveLimits().max_members, ge=1, description="Members a ZIP or TAR archive may have."
    )
    max_archive_expansion: int = Field(
        default=ArchiveLimits().max_expansion,
        ge=1,
        description="How many times its own size may come out of an archive.",
    )
    reference_roots: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_reference_roots)
    ] = Field(
        default=(),
        repr=False,
        description="Below which paths and URLs images may be submitted by reference; a comma between. "
        "Left out: nowhere.",
    )
    retrain_cron: str = Field(
        default="0 3 * * 0",
        description="When the model is retrained: five cron fields, in UTC. `never` switches it off.",
    )
    retrain_architecture: Literal["mlp", "cnn"] = Field(
        default="mlp", description="The network that is trained: `mlp` or `cnn`."
    )
    retrain_profile: Literal["quick", "long"] = Field(
        default="quick", description="How long it is trained: `quick` or `long`."
    )
    gate_min_accuracy: float = Field(
        default=0.967, ge=0.0, le=1.0, description="Below this accuracy no model is promoted."
    )
    gate_min_class_recall: float = Field(
        default=0.93,
        ge=0.0,
        le=1.0,
        description="Nor where less than this share of any class is recognised.",
    )
    gate_significance: float = Field(
        default=0.01,
        gt=0.0,
        le=1.0,
        description="Nor unless better than the champion on the same images, with a p value below this.",
    )
    gate_max_calibration_error: float = Field(
        default=0.03, ge=0.0, le=1.0, description="Nor with a larger expected calibration error."
    )
    gate_max_image_microseconds: float = Field(
        default=1000.0, gt=0.0, description="Nor where a process takes longer for an image, in microseconds."
    )
    shadow_share: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="The share of the chunks that a challenger in the shadow classifies as well.",
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
    def gate_limits(self) -> GateLimits:
        """Return what a model must reach to become the champion."""
        return GateLimits(
            min_accuracy=self.gate_min_accuracy,
            min_class_recall=self.gate_min_class_recall,
            significance=self.gate_significance,
            max_calibration_error=self.gate_max_calibration_error,
            max_image_microseconds=self.gate_max_image_microseconds,
        )

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
