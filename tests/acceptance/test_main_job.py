"""The main job: image files in, SQL rows out, on the embedded stack and on servers named by settings."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.ledger.models import CHAMPION, point_alias
from jobs.registry import fetch_model, register_model
from jobs.settings import ENV_PREFIX, Settings
from jobs.store import Store
from labelmill import Client
from labelmill.stack import _broker_command
from tests.console import Home, agreement, rows, until
from worker.learning.mnist import read_folder


@pytest.fixture
def redis_url(short_folder: Path) -> Iterator[str]:
    """A broker that is not the embedded one: TCP, with a password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = _broker_command(Settings(home=short_folder))[0]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", "sesame", "--save", ""]
    process = subprocess.Popen(
        [program, *options, "--dir", str(short_folder)], stdout=subprocess.DEVNULL, start_new_session=True
    )

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        until(answers, "the broker answers")
        yield f"redis://:sesame@127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.fast
def test_ten_thousand_digits(stack: Home, digits: Path, accuracy: float) -> None:
    # given the stack is up, when all test digits are submitted as PNG files and watched
    done = stack.run("submit", digits, "--watch")

    # then the job's id is the last word on stdout, and all is well
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    assert done.stdout == f"{job}\n"

    # and there is one prediction for every file, right as often as the model was on the same digits
    predictions = rows(stack.ok("predictions", job, "--format", "csv"))
    assert sorted(row["name"] for row in predictions) == sorted(map(str, digits.rglob("*.png")))
    assert [int(row["index"]) for row in predictions] == list(range(len(predictions)))
    assert agreement(predictions) == accuracy

    status = stack.json("status", job)
    counts = status["state"], status["total"], status["succeeded"], status["failed"]
    assert counts == ("done", len(predictions), len(predictions), 0)
    assert {row["model"] for row in predictions} == {status["model"]}


@pytest.mark.usefixtures("published_mnist")
def test_the_model_is_as_accurate_as_promised(accuracy: float) -> None:
    assert accuracy >= 0.967


def test_the_same_through_postgresql_and_redis_by_settings_alone(
    new_home: Home, postgresql_url: str, redis_url: str, digits: Path, accuracy: float, tmp_path: Path
) -> None:
    # given a PostgreSQL and a Redis with a password, named by settings, and a model in that ledger
    new_home.extra = {
        ENV_PREFIX + "LEDGER_URL": postgresql_url.replace("postgresql+psycopg", "postgresql"),
        ENV_PREFIX + "BROKER_URL": redis_url,
        ENV_PREFIX + "STORE_URL": str(tmp_path / "store"),
    }
    new_home.ok("db", "upgrade")
    _hand_over_the_model(new_home)

    # when a worker is started and the digits are submitted
    with new_home.started("worker", "--processes", "2", log=tmp_path / "worker.log"):
        done = new_home.run("submit", digits, "--watch")

    # then it is the same as ever
    assert done.returncode == 0, done.stderr
    predictions = rows(new_home.ok("predictions", done.stdout.split()[-1], "--format", "csv"))
    names = [row["name"] for row in predictions]
    assert sorted(names) == sorted(map(str, digits.rglob("*.png")))
    assert agreement(predictions) == accuracy

    # and the password is in no log
    assert "sesame" not in (tmp_path / "worker.log").read_text()


def _hand_over_the_model(home: Home) -> None:
    """Registers the champion of the home's embedded ledger in the ledger that its settings name."""
    with contextlib.closing(Client(Settings.load(home=home.path))) as embedded:
        [model] = embedded.models()
        data = fetch_model(Store(embedded.settings.store), model, home.path / "cache").read_bytes()
    there = Settings.load(
        **{name.removeprefix(ENV_PREFIX).lower(): value for name, value in home.extra.items()}
    )
    with contextlib.closing(Client(there)) as client:
        copy = register_model(
            client.ledger,
            Store(there.store),
            data,
            architecture=model.architecture,
            classes=model.classes,
            input_spec=model.input_spec,
            accuracy=model.accuracy,
            metrics=model.metrics,
        )
        with client.ledger.transaction() as connection:
            point_alias(connection, CHAMPION, copy.id)


@pytest.mark.fast
def test_a_bad_image_costs_its_neighbours_nothing(stack: Home, few_digits: Path, tmp_path: Path) -> None:
    # given good digits and, among them, an empty file, a text, half a PNG and a TIFF
    folder = tmp_path / "mixed"
    shutil.copytree(few_digits, folder)
    good = next(few_digits.rglob("*.png")).read_bytes()
    (folder / "0" / "empty.png").write_bytes(b"")
    (folder / "1" / "letter.png").write_text("Dear Sir or Madam")
    (folder / "2" / "half.png").write_bytes(good[: len(good) // 2])
    (folder / "3" / "scan.tif").write_bytes(b"II*\0" + b"\0" * 64)

    # when they are submitted
    done = stack.run("submit", folder, "--watch")

    # then the exit code says that some images got an error, each has its own, and the others their labels
    assert done.returncode == 3, done.stderr
    job = done.stdout.split()[-1]
    errors = rows(stack.ok("predictions", job, "--errors", "--format", "csv"))
    assert {Path(row["name"]).name: row["error"] for row in errors} == {
        "empty.png": "unidentified",
        "letter.png": "unidentified",
        "half.png": "corrupt",
        "scan.tif": "format_not_allowed",
    }
    assert all(row["label"] == "" for row in errors)
    everything = rows(stack.ok("predictions", job, "--format", "csv"))
    assert len(everything) == 54
    assert sum(row["label"] != "" for row in everything) == 50
    assert agreement([row for row in everything if row["label"]]) >= 0.9


def test_every_kind_of_source(
    stack: Home, few_digits: Path, mnist_dir: Path, tmp_path: Path, accuracy: float
) -> None:
    # given the same digits as files, a glob, paths on stdin and a ZIP archive
    archive = tmp_path / "few.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(few_digits.rglob("*.png")):
            file.write(path, path.relative_to(few_digits))
    files = sorted(map(str, few_digits.rglob("*.png")))
    stdin = "\n".join(files)

    def labels(*sources: str | Path, stdin: str | None = None) -> list[str]:
        job = stack.ok("submit", *sources, "--watch", stdin=stdin).split()[-1]
        return sorted(row["label"] for row in rows(stack.ok("predictions", job, "--format", "csv")))

    # when each is submitted, then the labels are the same
    expected = labels(few_digits)
    assert len(expected) == 50
    assert labels(*files) == expected
    assert labels(f"{few_digits}/*/*.png") == expected
    assert labels("-", stdin=stdin) == expected
    assert labels(archive) == expected

    # and MNIST's own file of images gives all 10,000, as right as the model is
    [images] = mnist_dir.glob("t10k-images*")
    job = stack.ok("submit", images, "--watch").split()[-1]
    truth = _labels_of(mnist_dir)
    predictions = rows(stack.ok("predictions", job, "--format", "csv"))
    right = sum(int(row["label"]) == label for row, label in zip(predictions, truth, strict=True))
    assert right / len(truth) == accuracy


def _labels_of(mnist_dir: Path) -> list[int]:
    return read_folder(mnist_dir, lambda _line: None).test_labels.tolist()


@pytest.mark.fast
def test_a_submission_key_gives_the_same_job(stack: Home, few_digits: Path) -> None:
    # given a job under a key
    job = stack.ok("submit", few_digits / "0", few_digits / "1", "--key", "monday").split()[-1]

    # when the same content is submitted again under it, in another order, then it is the same job
    assert stack.ok("submit", few_digits / "1", few_digits / "0", "--key", "monday").split()[-1] == job

    # and other content under the same key is refused
    refused = stack.run("submit", few_digits / "2", "--key", "monday")
    assert refused.returncode == 2
    assert "already belongs to job" in refused.stderr
    assert refused.stdout == ""


def test_predictions_can_be_filtered_paged_and_exported(stack: Home, digits: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    job = stack.ok("submit", digits / "7", digits / "9", "--watch").split()[-1]
    everything = rows(stack.ok("predictions", job, "--format", "csv"))

    # by label, by confidence, by name
    sevens = rows(stack.ok("predictions", job, "--label", "7", "--format", "csv"))
    assert sevens == [row for row in everything if row["label"] == "7"]
    unsure = rows(stack.ok("predictions", job, "--below", "0.6", "--format", "csv"))
    assert unsure == [row for row in everything if float(row["confidence"]) < 0.6]
    assert unsure
    named = rows(stack.ok("predictions", job, "--name", "*/9/*1.png", "--format", "csv"))
    assert named == [row for row in everything if "/9/" in row["name"] and row["name"].endswith("1.png")]

    # page by page, by the cursor that is said on stderr
    pages, cursor = [], ["--limit", "700"]
    while True:
        page = stack.run("predictions", job, "--format", "csv", *cursor)
        pages += rows(page.stdout)
        if "more: --after" not in page.stderr:
            break
        cursor = ["--limit", "700", "--after", page.stderr.split()[-1]]
    assert pages == everything

    # and in every format
    stack.ok("predictions", job, "--format", "parquet", "--output", tmp_path / "job.parquet")
    table = pq.read_table(tmp_path / "job.parquet").to_pylist()
    assert [(row["name"], row["label"]) for row in table] == [
        (row["name"], row["label"]) for row in everything
    ]
    assert len(stack.ok("predictions", job, "--format", "jsonl").splitlines()) == len(everything)
    assert len(stack.ok("predictions", job).splitlines()) == len(everything) + 1


@pytest.mark.fast
def test_the_client_in_python(stack: Home, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_PREFIX + "HOME", str(stack.path))

    with Client() as client:
        job = client.submit(few_digits)
        status = client.wait(job, timeout=60)
        found = list(client.predictions(job))

    assert (status.state, status.succeeded) == ("done", 50)
    assert [prediction.index for prediction in found] == list(range(50))


def test_classify_starts_what_is_missing_and_leaves_nothing_running(new_home: Home, few_digits: Path) -> None:
    # given no stack is up, when an image is classified the short way
    [seven, *_] = sorted((few_digits / "7").iterdir())
    done = new_home.run("classify", seven, "--json")

    # then its label is printed and nothing is left running
    assert done.returncode == 0, done.stderr
    assert '"label": "7"' in done.stdout
    assert not _processes_that_mention(new_home.path)


def _processes_that_mention(path: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if bytes(path) in environment:
                    found.append((entry / "cmdline").read_text())
    return found
