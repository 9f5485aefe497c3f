"""Passwords in all three URLs, and not a letter of them in anything that is printed, written or listed."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.schema import metadata
from jobs.settings import ENV_PREFIX
from jobs.storage.store import Store
from labelmill.cli import COMMANDS
from labelmill.operations.readiness import Part
from tests.console import COMMAND_SECONDS, LABELMILL, Home, processes_below, until
from tests.digits import Digits
from tests.kerasfile import keras_file
from tests.registering import register_digits
from tests.scraping import scrape
from tests.secured import TlsBroker, TlsLedger

#: In all passwords of this test, and in nothing else; beside it are letters that must be escaped in a URL.
MARK: Final = "s3cret"

BROKER: Final = ENV_PREFIX + "BROKER_URL"
LEDGER: Final = ENV_PREFIX + "LEDGER_URL"
STORE: Final = ENV_PREFIX + "STORE_URL"

_STAND_INS: Final = Path(__file__).parents[1] / "stand_ins"


@dataclass
class Deployment:
    """A home whose services all have a password, and all that was said in it."""

    home: Home
    folder: Path
    said: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `labelmill ...` and keeps what it prints."""
        done = self.home.run(*arguments, stdin=stdin)
        self.said[f"{' '.join(map(str, arguments))} {len(self.said)}"] = done.stdout + done.stderr
        return done

    def job(self, *arguments: str | Path) -> str:
        """Runs a command that ends in a job's id, with whatever exit code."""
        return self.run(*arguments).stdout.split()[-1]

    @contextlib.contextmanager
    def process(self, *command: str) -> Iterator[Path]:
        """Starts another process of it, and ends it; gives its log, which is kept, too."""
        log = self.folder / f"log-{len(self.said)}"
        self.said[f"{' '.join(command)} {len(self.said)}"] = ""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self.home.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield log
        finally:
            for below in processes_below(process.pid):
                with contextlib.suppress(OSError):
                    self.said[f"the command line of {below} {len(self.said)}"] = Path(
                        f"/proc/{below}/cmdline"
                    ).read_text()
            process.terminate()
            process.wait(COMMAND_SECONDS)
            self.said[str(log)] = log.read_text()

    def check(self) -> None:
        """Fails where a secret was said."""
        for place, text in self.said.items():
            assert MARK not in text, f"{place} says a secret: {_line_with(MARK, text)}"


def _says(log: Path, word: str) -> bool:
    return word in log.read_text()


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _line_with(mark: str, text: str) -> str:
    return next(line for line in text.splitlines() if mark in line)


@pytest.fixture
def deployment(
    tls_broker: TlsBroker, tls_ledger: TlsLedger, short_folder: Path, little_mnist: Digits
) -> Deployment:
    data = short_folder / "mnist"
    little_mnist.write(data)
    return Deployment(
        Home(
            short_folder / "home",
            {
                BROKER: tls_broker.url(),
                LEDGER: tls_ledger.url(),
                STORE: "s3://key-id:store-s3cret%2F%40@bucket/labelmill",
                ENV_PREFIX + "MNIST_DIR": str(data),
                "S3_STAND_IN": str(short_folder / "s3"),
                "PYTHONPATH": str(_STAND_INS),
            },
        ),
        short_folder,
    )


def test_nothing_that_works_says_a_secret(
    deployment: Deployment, postgresql_url: str, tls_broker: TlsBroker, few_digits: Path, tmp_path: Path
) -> None:
    # given all the processes of a deployment, as talkative as they can be
    run, job = deployment.run, deployment.job
    (tmp_path / "no picture.png").write_text("no picture")
    assert run("train").returncode == 0
    worker = [str(LABELMILL), "worker", "--loglevel", "debug"]
    beat = [sys.executable, "-m", "celery", "-A", "worker.app", "beat", "--pidfile=", "--loglevel", "debug"]
    with (
        deployment.process(*worker) as log,
        deployment.process(*worker, "--trainer") as trainer_log,
        deployment.process(*worker, "--webhooks") as webhooks_log,
        deployment.process(*beat) as beat_log,
        deployment.process(str(LABELMILL), "metrics", "--listen", "127.0.0.1:0") as metrics_log,
        deployment.process(str(LABELMILL), "serve", "--listen", "127.0.0.1:0") as api_log,
    ):
        for started, word in (
            (log, "ready."),
            (trainer_log, "ready."),
            (webhooks_log, "ready."),
            (beat_log, "beat: Starting"),
            (metrics_log, "/metrics;"),
            (api_log, "Ctrl-C ends it"),
        ):
            until(partial(_says, started, word), "all have begun")

        # when every command is used
        done = job("submit", few_digits, "--watch")
        failed = job("submit", tmp_path, "--watch")
        run("submit", few_digits / "3", "--json")
        run("classify", few_digits / "3", "--json")
        run("retry", failed, "--failed", "--json")
        paused = job("submit", few_digits / "4")
        for command in ("pause", "resume", "cancel", "status"):
            run(command, paused, "--json")
        run("status", done)
        run("predictions", done, "--format", "csv")
        for command in ("evaluate", "review"):
            run(command, done, "--json")
        for command in ("datasets", "backbones", "schedule", "gate", "keys", "webhooks", "projects"):
            run(command, "--json")
        run("webhooks", "attempts")
        run("jobs", "--json")
        run("jobs")
        [model, *_] = run("models", "list").stdout.splitlines()[1].split()
        run("models", "list", "--json")
        run("models", "show", model)
        run("correct", done, "0", "3", "--json")
        assert run("retrain", "--wait", "--json").returncode in (0, 3)
        asked = job("retrain")
        run("runs", "cancel", asked, "--json")
        run("runs", "--json")
        run("runs", "show", asked)
        run("purge", "--json")
        run("doctor", "--json")
        run("doctor")
        run("db", "upgrade")
        run("workers")
        run("workers", "--json")
        for part in Part:
            run("ready", part)
        [port] = re.findall(r"127\.0\.0\.1:(\d+)/metrics", metrics_log.read_text())
        scraped = scrape(int(port))
        assert scraped["ledger_up"] == scraped["broker_up"] == 1
        deployment.said["metrics"] = scraped.text
        key = run("keys", "create", "test").stdout.strip()
        [url] = re.findall(r"HTTP API at (\S+);", api_log.read_text())
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api:
            until(partial(_answers, api), "the API answers")
            paths = ("/openapi.json", "/v1/batches", "/v1/files", f"/v1/batches/{failed}/results", "/v1/none")
            uploaded = api.post("/v1/files", data={"purpose": "batch"}, files={"file": b"no picture"})
            answers = [uploaded, *map(api.get, paths)]
        deployment.said["serve"] = "".join(str(answer.headers) + answer.text for answer in answers)
        run("up", "--help")
        assert run("demo").returncode == 0
    covered = {name for name in COMMANDS if any(said.startswith(name) for said in deployment.said)}
    assert covered | {"worker"} == set(COMMANDS)

    # then no secret was printed, logged, or to be seen in the list of processes
    assert all("DEBUG" in started.read_text() for started in (log, trainer_log, webhooks_log, beat_log))
    deployment.check()

    # and none is in a file, in a row of the ledger, or in the broker
    for path in deployment.folder.rglob("*"):
        assert MARK not in str(path)
        if path.is_file():
            assert MARK.encode() not in path.read_bytes(), path
    with contextlib.closing(Ledger(postgresql_url)) as ledger, ledger.reading() as connection:
        for table in metadata.sorted_tables:
            assert MARK not in str(connection.execute(sa.select(table)).all())
    client = tls_broker.client
    assert MARK not in str([client.dump(key) for key in client.scan_iter()])


# ---- what fails ---------------------------------------------------------------------------------------

_NOBODY: Final = "@127.0.0.1:1/"
_UNKNOWN: Final = "@no-such-host.invalid:1/"

#: Settings each of which is wrong in its own way, made of the right ones.
BROKEN: Final[dict[str, Callable[[TlsBroker, TlsLedger], dict[str, str]]]] = {
    "no broker there": lambda b, _: {BROKER: re.sub("@.*?/", _NOBODY, b.url())},
    "no TLS for the broker": lambda b, _: {BROKER: re.sub(r"rediss(.*)\?.*", r"redis\1", b.url())},
    "no host of the ledger's name": lambda _, d: {LEDGER: re.sub("@.*?/", _UNKNOWN, d.url())},
    "not the ledger's password": lambda _, d: {LEDGER: replace(d, password="another-s3cret/@").url()},
    "a store that refuses": lambda *_: {STORE: "s3://key-id:store-s3cret%2F%40@away/labelmill"},
    "no store there": lambda *_: {STORE: f"ftp://user:store-s3cret%2F%40{_NOBODY}labelmill"},
    "all that can be wrong": lambda *_: {
        BROKER: "redis://user:s3cret@host:port/0",
        LEDGER: "postgresql://user:s3cret@host:port/db",
        STORE: "nothing://user:s3cret@host",
        ENV_PREFIX + "PROCESSES": MARK,
        ENV_PREFIX + "LEASE_SECONDS": MARK,
        ENV_PREFIX + "MAX_IMAGE_BYTES": MARK,
    },
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_nothing_that_fails_says_a_secret(
    deployment: Deployment,
    postgresql_url: str,
    tls_broker: TlsBroker,
    tls_ledger: TlsLedger,
    few_digits: Path,
    wrong: str,
) -> None:
    # given a deployment with a model, and a setting that is wrong
    _register_champion(postgresql_url, deployment.folder)
    deployment.home.extra |= BROKEN[wrong](tls_broker, tls_ledger)

    # when it is used from the console, and by a program that catches nothing
    submitted = deployment.run("submit", few_digits / "7")
    if ENV_PREFIX not in submitted.stderr:  # else no command comes any further
        deployment.run("doctor")
    program = "from labelmill import Client; c = Client(); c.submit(sys.argv[1]); print(repr(c.settings))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}", few_digits / "7"],
        env=deployment.home.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    deployment.said["a program"] = done.stdout + done.stderr

    # then something is said of it, in lines, and no secret
    assert submitted.stderr.count("\n") <= 5
    assert "Traceback" not in submitted.stderr
    assert ("broker" in submitted.stderr) if submitted.returncode == 0 else submitted.stderr
    deployment.check()


def _register_champion(url: str, folder: Path) -> None:
    store = Store(str(folder / "s3" / "bucket" / "labelmill"))
    with contextlib.closing(Ledger(url)) as ledger:
        register_digits(ledger, store, keras_file(), champion=True)
