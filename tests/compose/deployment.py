"""A deployment by Docker Compose, for a test: the project's own compose file, with real containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from jobs.ledger.database import REVISION

PROJECT: Final = Path(__file__).parents[2]

#: What an image is built from, and what the compose file names besides.
_COPIED: Final = (
    *(
        "docker-compose.yml",
        "compose.slim.yaml",
        "Dockerfile",
        ".dockerignore",
        "deploy",
        "requirements",
        "pyproject.toml",
        "README.md",
    ),
    *("LICENSE", "labelmill", "producer", "worker", "jobs", "migrations"),
)

#: This version, and the one that `check_out_newer` makes.
VERSION: Final = metadata.version("labelmill")
NEWER: Final = "99.0.0"

#: The name of the container that `Deployment.tarpit` runs.
TARPIT: Final = "tarpit"

_ACCEPT: Final = """
import socket
server, held = socket.create_server(("", 8080), backlog=1000), []
while True:
    held.append(server.accept())
"""

#: How long an image may take to build: the packages of a worker are 2 GB.
BUILD_SECONDS: Final = 1500

#: How long all services may take to be healthy.
UP_SECONDS: Final = 300

#: How long a command may take.
COMMAND_SECONDS: Final = 300

#: The exit code of a `docker compose exec` whose command the engine could not start: nothing of it ran. An
#: engine under load may fail so in a healthy container.
_NOT_STARTED: Final = 126


@dataclass(frozen=True)
class Container:
    """One running container, as the engine tells of it."""

    id: str
    service: str
    inspected: dict[str, Any]

    @property
    def pid(self) -> int:
        """Its first process, as this machine counts."""
        return int(self.inspected["State"]["Pid"])

    @property
    def health(self) -> str:
        """`healthy`, or what it is instead; `none` without a check."""
        return str(self.inspected["State"].get("Health", {}).get("Status", "none"))


class Deployment:
    """A copy of the project in a folder, and `docker compose` in it."""

    def __init__(self, folder: Path, *, mnist: Path, images: Path, variant: str = "") -> None:
        """`mnist` is for the trainer, `images` for the producer, as /images.

        `variant` is a compose file that changes some services, such as `compose.slim.yaml`.
        """
        self.folder = folder
        self.check_out()
        subprocess.run(["sh", "deploy/compose/make-secrets"], cwd=folder, check=True)
        override = {
            "services": {
                "trainer": {
                    "environment": {"LABELMILL_MNIST_DIR": "/mnist"},
                    "volumes": [f"{mnist}:/mnist:ro"],
                },
                "producer": {"volumes": [f"{images}:/images:ro"]},
            }
        }
        files = [*filter(None, ("docker-compose.yml", variant)), "docker-compose.override.yml"]
        (folder / files[-1]).write_text(json.dumps(override))
        self._environment = os.environ | {
            "COMPOSE_FILE": ":".join(files),
            "COMPOSE_PROJECT_NAME": "labelmill-test",
            "COMPOSE_PROGRESS": "plain",
            # Built together, images that share stages may fail with "inconsistent graph state"
            # (moby/buildkit#2303).
            "COMPOSE_PARALLEL_LIMIT": "1",
            # Any that is free: another deployment may be up on this machine.
            **{f"{name}_PORT": "0" for name in ("API", "METRICS", "PROMETHEUS", "GRAFANA")},
            # A worker that vanished is noticed after a lease.
            "LABELMILL_LEASE_SECONDS": "20",
            "LABELMILL_CHUNK_IMAGES": "500",
            "LABELMILL_PROCESSES": "2",
            # A container that accepts connections and never answers.
            "LABELMILL_PRIVATE_HOSTS": TARPIT,
        }

    # ---- commands ---------------------------------------------------------------------------------------

    def compose(
        self, *arguments: str, timeout: float = COMMAND_SECONDS, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose ...` to its end, which must be a good one where `check` says so."""
        return self._run("docker", "compose", *arguments, timeout=timeout, check=check)

    def up(self, *arguments: str) -> None:
        """Everything is up and healthy."""
        self.compose(
            "up", "--detach", "--wait", "--wait-timeout", str(UP_SECONDS), *arguments, timeout=UP_SECONDS + 60
        )

    def labelmill(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`labelmill ...` in a container of the service `producer`."""
        return self.compose("run", "--rm", "--no-TTY", "producer", *arguments, check=check)

    def script(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `sh deploy/compose/NAME ...`. Unless `check` is false, it must succeed."""
        return self._run("sh", f"deploy/compose/{name}", *arguments, timeout=BUILD_SECONDS, check=check)

    def start_script(self, name: str) -> subprocess.Popen[str]:
        """Start `sh deploy/compose/NAME`, as the leader of a process group. Only its stderr is kept."""
        return self._start("sh", f"deploy/compose/{name}", stderr=subprocess.PIPE, start_new_session=True)

    def _start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command beside the test. Its output is dropped unless `options` for Popen say otherwise."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        return subprocess.Popen(
            command, cwd=self.folder, env=self._environment, text=True, **(streams | options)
        )

    def _run(self, *command: str, timeout: float, check: bool) -> subprocess.CompletedProcess[str]:
        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )

        done = run()
        if done.returncode == _NOT_STARTED and "exec" in command:
            warnings.warn(f"{' '.join(command)}: not started, tried again\n{_output(done)}", stacklevel=2)
            done = run()
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{_output(done)}")
        return done

    # ---- versions ---------------------------------------------------------------------------------------

    def check_out(self) -> None:
        """Make the checkout the version of this project."""
        for name in _COPIED:
            if (PROJECT / name).is_dir():
                shutil.rmtree(self.folder / name, ignore_errors=True)
                shutil.copytree(PROJECT / name, self.folder / name)
            else:
                shutil.copy(PROJECT / name, self.folder / name)

    def check_out_newer(self, statement: str) -> str:
        """Make the checkout version `NEWER`, whose last migration runs this statement. Return its number."""
        self.check_out()
        number = "9999"
        self._replace(
            "jobs/ledger/database.py", f'REVISION: Final = "{REVISION}"', f'REVISION: Final = "{number}"'
        )
        for name in ("docker-compose.yml", "Dockerfile", "pyproject.toml"):
            self._replace(name, VERSION, NEWER)
        (self.folder / "migrations" / "versions" / f"{number}_newer.py").write_text(
            f"from alembic import op\nrevision, down_revision = {number!r}, {REVISION!r}\n"
            f"def upgrade():\n    op.execute({statement!r})\n"
        )
        return number

    def _replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text, name
        (self.folder / name).write_text(text.replace(old, new))

    # ---- more commands ----------------------------------------------------------------------------------

    def told(self, *arguments: str) -> Any:
        """`labelmill ... --json`."""
        return json.loads(self.labelmill(*arguments, "--json").stdout)

    def start(self, *arguments: str, entrypoint: str = "labelmill") -> subprocess.Popen[str]:
        """`labelmill ...` in a container, at work beside the test."""
        run = ("docker", "compose", "run", "--rm", "--no-TTY", "--entrypoint", entrypoint)
        return self._start(*run, "producer", *arguments, stdout=subprocess.PIPE)

    @contextmanager
    def tarpit(self) -> Iterator[None]:
        """Run a container that accepts connections and never answers: `http://tarpit:8080`."""
        self.compose("run", "--detach", "--name", TARPIT, "--entrypoint", "python", "producer", "-c", _ACCEPT)
        try:
            yield
        finally:
            docker("rm", "--force", TARPIT)

    def ask(self, statement: str) -> list[list[str]]:
        """Rows of the ledger."""
        answer = self.execute(statement, role="postgres").stdout
        return [line.split("|") for line in answer.splitlines() if line]

    def execute(self, statement: str, *, role: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one statement with `psql`, as this role."""
        return self.compose(
            *("exec", "--no-TTY", "db", "psql", f"--username={role}", "--dbname=labelmill"),
            *("--no-align", "--tuples-only", "--quiet", f"--command={statement}"),
            check=check,
        )

    # ---- containers -------------------------------------------------------------------------------------

    def containers(self, *services: str) -> list[Container]:
        """The running ones, of all services or of these."""
        ids = self.compose("ps", "--quiet", *services).stdout.split()
        return _inspect(ids)

    def clean_up(self) -> None:
        """Nothing of it is left but the images."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


def _output(done: subprocess.CompletedProcess[str]) -> str:
    """Return the end of what a command printed. The engine's own errors may be on stdout."""
    return (done.stdout + done.stderr)[-4000:]


def _inspect(ids: Iterable[str]) -> list[Container]:
    ids = list(ids)
    if not ids:
        return []
    found = json.loads(docker("inspect", *ids))
    return [Container(one["Id"], one["Config"]["Labels"]["com.docker.compose.service"], one) for one in found]


def docker(*arguments: str) -> str:
    """`docker ...`, which must succeed; gives back its stdout."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout
