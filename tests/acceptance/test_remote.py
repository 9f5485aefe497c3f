"""Commands on a laptop that reaches only the HTTP API: no ledger, no broker, no store."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import labelmill
from jobs.settings import ENV_PREFIX
from labelmill.client.remote import RemoteClient
from producer.sources import SourceImage, Sources
from tests.console import COMMAND_SECONDS, LABELMILL, Home, agreement, killed_at_the_end, rows, until
from tests.serving import make_key


def laptop_with(url: str, key: str, folder: Path) -> Home:
    """Return a home whose ledger and state folder would fail if they were used."""
    (folder / "file").touch()
    extra = {"LEDGER_URL": "postgresql://nobody@127.0.0.1:1/none", "API_URL": url, "API_KEY": key}
    return Home(folder / "file" / "home", {ENV_PREFIX + name: value for name, value in extra.items()})


@pytest.fixture(scope="module")
def laptop(stack: Home, url: str, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return laptop_with(url, make_key(stack, "review"), tmp_path_factory.mktemp("laptop"))


def remote(laptop: Home) -> RemoteClient:
    return labelmill.connect(laptop.extra["LABELMILL_API_URL"], key=laptop.extra["LABELMILL_API_KEY"])


def large_files(stack: Home) -> set[Path]:
    """Return the uploaded files that are more than a few digits."""
    return {path for path in (stack.path / "store").glob("files/*") if path.stat().st_size > 50_000}


def without(found: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in names}


def test_a_folder_an_archive_and_a_file_are_submitted_and_read_as_on_the_server(
    laptop: Home, stack: Home, few_digits: Path, tmp_path: Path
) -> None:
    before = large_files(stack)
    # Given images in a folder, in an archive, in a hidden folder, and one that is none
    with tarfile.open(tmp_path / "more.tgz", "w:gz") as archive:
        archive.add(few_digits / "3", "three")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "letter").write_text("Dear Sir or Madam")
    sources = few_digits, tmp_path / "more.tgz", tmp_path / ".hidden" / "letter", tmp_path / "*.tgz"

    # When they are submitted from the laptop, and on the server
    options = "--watch", "--top", "3"
    submitted = laptop.run("submit", *sources, *options, "--key", "june")
    assert submitted.returncode == 3, submitted.stderr  # finished, with an error
    assert "60 of 61 images classified, 1 with an error" in submitted.stderr
    job = submitted.stdout.split()[-1]
    there = stack.run("submit", *sources, *options).stdout.split()[-1]

    # Then each image has the same name and label, in the same order, in all formats
    for form in (["--format", "csv"], ["--json"], ["--errors", "--format", "table"], ["--label", "3"]):
        assert laptop.ok("predictions", job, *form) == stack.ok("predictions", there, *form)
    found = rows(laptop.ok("predictions", job, "--format", "csv"))
    assert agreement(found[:50]) > 0.9
    assert len(rows(laptop.ok("predictions", job, "--format", "csv", "--limit", "7"))) == 7

    # And the status is that of the server, with the exact times
    mine, theirs = laptop.json("status", job), stack.json("status", job)
    assert without(mine, "read_at") == without(theirs, "read_at")
    assert laptop.json("status", job[:12])["id"] == job
    assert laptop.ok("status", job) == stack.ok("status", job)
    assert laptop.json("jobs", "--limit", "2")[0]["id"] == there
    done = laptop.json("jobs", "--state", "done", "--limit", "300")
    assert job in [each["id"] for each in done]
    assert {each["state"] for each in done} == {"done"}

    # And the same key with the same content is the same job, with other content a conflict
    again = laptop.run("submit", *sources, "--top", "3", "--key", "june")
    assert (again.returncode, again.stdout.split()[-1]) == (0, job)
    assert "already has a job with the same content" in again.stderr
    other = laptop.run("submit", few_digits / "1", "--key", "june")
    assert (other.returncode, other.stdout) == (2, "")
    assert "use another key" in other.stderr
    # And no uploaded file stays
    assert large_files(stack) == before


def test_a_job_is_controlled_and_retried(laptop: Home, digits: Path, few_digits: Path) -> None:
    # Given a job that was paused before all its images were classified
    with remote(laptop) as client:
        job = client.pause(client.submit(digits)).id

    # When it is paused again and cancelled, then it is that
    assert laptop.json("pause", job)["paused"] is True
    assert laptop.json("cancel", job)["state"] == "cancelled"
    assert "already finished: it is cancelled" in laptop.run("cancel", job).stderr

    # When a job with an error is retried, then the new job has the images without a label
    (few_digits.parent / "none.png").write_text("no image")
    failed = laptop.run("submit", few_digits.parent / "none.png", "--watch").stdout.split()[-1]
    retried = laptop.run("retry", failed, "--watch", "--json")
    assert retried.returncode == 3, retried.stderr
    found = json.loads(retried.stdout)
    assert (found["retry_of"], found["total"]) == (failed, 1)
    labelled = laptop.ok("submit", few_digits / "1", "--watch").split()[-1]
    assert laptop.run("retry", labelled, "--json").stdout.strip() == "null"


def test_labels_are_corrected(laptop: Home, stack: Home, few_digits: Path, tmp_path: Path) -> None:
    job = stack.ok("submit", few_digits / "5", "--watch").split()[-1]
    mine = laptop.json("correct", job, "0", "7")
    [theirs] = [each for each in stack.json("correct", "--list") if each["job_id"] == job]
    assert without(mine, "created_at") == without(theirs, "created_at")
    assert laptop.json("correct", job, "0", "--undo")["label"] == "7"

    # On the server, a person is told in a line, and the label counts in the health of the model
    first, second, _, fourth, *_ = [
        row["label"] for row in rows(stack.ok("predictions", job, "--format", "csv"))
    ]
    done = stack.run("correct", job, "0", "7")
    assert (done.returncode, done.stdout) == (0, "")
    assert "is 7; the prediction was" in done.stderr
    assert "the prediction is confirmed" in stack.run("correct", job, "1", second).stderr
    listed = [line.split()[:4] for line in stack.ok("correct", "--list").splitlines()]
    assert listed[1:3] == [[job, "1", second, second], [job, "0", "7", first]]
    assert "live accuracy" in stack.ok("models", "health")
    assert "has no correction now" in stack.run("correct", job, "0", "--undo").stderr
    stack.ok("correct", job, "1", "--undo")

    # Many at once: all, or none with the line that is wrong
    with (tmp_path / "corrections.csv").open("w") as file:
        csv.writer(file).writerows([["index", "label"], [0, "1"], [1, ""], [2, "cat"]])
    refused = laptop.run("correct", job, "--from", tmp_path / "corrections.csv")
    assert refused.returncode == 2
    assert "line 4: " in refused.stderr
    (tmp_path / "corrections.csv").write_text(f"index,label\n0,1\n1,\n2,3\n3,{fourth}\n")
    stored = laptop.run("correct", job, "--from", tmp_path / "corrections.csv", "--json")
    assert [(each["index"], each["label"]) for each in json.loads(stored.stdout)] == [(0, "1"), (2, "3")]
    assert "skipped 1 row without a label" in stored.stderr
    assert "2 changed, 1 unchanged: ignored" in stored.stderr
    undone = laptop.run("correct", job, "--undo", "--from", tmp_path / "corrections.csv", "--json")
    assert json.loads(undone.stdout) == json.loads(stored.stdout), undone.stderr


def test_what_does_not_work_remotely_says_what_to_do(laptop: Home, few_digits: Path) -> None:
    def refused(*arguments: str | Path, home: Home = laptop) -> str:
        done = home.run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "Traceback" not in done.stderr
        assert laptop.extra["LABELMILL_API_KEY"] not in done.stderr
        return done.stderr

    assert "leave it out" in refused("submit", few_digits, "--by-reference")
    assert "run it where the ledger can be reached" in refused("correct", "--list")
    assert "no images" in refused("submit", Path(__file__).parent)
    assert "There is no job 'nothing!'" in refused("status", "nothing!")
    assert "There is no batch '06h0w4r0rf0dkckt'" in refused("predictions", "06h0w4r0rf0dkckt")
    assert "no such model" in refused("submit", few_digits, "--model", "no such model")
    wrong = Home(laptop.path, {**laptop.extra, ENV_PREFIX + "API_KEY": "labelmill_wrong"})
    assert "refuses the key" in refused("submit", few_digits, home=wrong)
    none = Home(laptop.path, {**laptop.extra, ENV_PREFIX + "API_KEY": ""})
    assert "set LABELMILL_API_KEY" in refused("jobs", home=none)
    # Commands that are about this machine say so
    assert "`labelmill models` does not use LABELMILL_API_URL" in laptop.run("models", "list").stderr


def test_the_key_is_in_no_command_line_and_no_message(laptop: Home, few_digits: Path, tmp_path: Path) -> None:
    key = "labelmill_s3cret"
    (tmp_path / "key").write_text(f"{key}\n")
    extra = without(laptop.extra, ENV_PREFIX + "API_KEY") | {
        ENV_PREFIX + "API_KEY_FILE": str(tmp_path / "key")
    }
    home = Home(laptop.path, extra)
    program = (
        "import sys; from labelmill.commands.connection import open_client; c = open_client()\n"
        "print(repr(c.settings), c)\n"
        "c.submit(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, few_digits],
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr + home.run("submit", few_digits).stderr + home.run("doctor").stderr
    assert "refuses the key" in said
    assert "s3cret" not in said
    with killed_at_the_end(
        subprocess.Popen(
            [LABELMILL, "submit", "-"], env=home.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
    ) as process:
        assert "s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_text()


# ---- a server that is killed ------------------------------------------------------------------------------


class Server:
    """An API process that can be killed, and started again at the same address."""

    def __init__(self, stack: Home, log: Path, port: str) -> None:
        self._log = log
        self._command = [LABELMILL, "serve", "--listen", f"127.0.0.1:{port}"]
        self._environment = stack.environment
        self.start()
        until(lambda: "HTTP API at " in log.read_text(), "it is served")
        found = re.search(r"HTTP API at (\S+);", log.read_text())
        assert found is not None
        self.url = found[1]
        self._command[-1] = self.url.removeprefix("http://")

    def start(self) -> None:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(COMMAND_SECONDS)


@pytest.fixture
def server(stack: Home, tmp_path: Path) -> Iterator[Server]:
    server = Server(stack, tmp_path / "serve.log", "0")
    yield server
    server.process.terminate()
    server.process.wait(COMMAND_SECONDS)


class KillsTheServer:
    """The images of a folder. While they are read the first time, the server is killed and started again."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.reads = 0
        self._server = server
        self._sources = Sources([str(folder)])

    def __iter__(self) -> Iterator[SourceImage]:
        self.reads += 1
        for number, image in enumerate(self._sources):
            if (self.reads, number) == (1, 2_000):
                self._server.kill()
                threading.Timer(1.0, self._server.start).start()
            yield image


def test_an_upload_goes_on_after_the_server_was_killed(
    server: Server, stack: Home, digits: Path, tmp_path: Path
) -> None:
    laptop = laptop_with(server.url, make_key(stack), tmp_path)
    before = {each["id"] for each in stack.json("jobs", "--limit", "1000")}
    images = KillsTheServer(server, digits)
    with remote(laptop) as client:
        submitted = client.submission(images)
        assert (submitted.images, images.reads) == (10_000, 2)
        assert client.wait(submitted.job_id, timeout=COMMAND_SECONDS).succeeded == 10_000
        names = [each.name for each in client.predictions(submitted.job_id)]
    assert names == [image.name for image in Sources([str(digits)])]
    # And there is no second job
    assert {each["id"] for each in stack.json("jobs", "--limit", "1000")} - before == {submitted.job_id}


def test_watching_goes_on_after_the_server_was_killed(
    server: Server, stack: Home, digits: Path, tmp_path: Path
) -> None:
    # Given a job that is followed and does not end, because it is paused
    laptop = laptop_with(server.url, make_key(stack), tmp_path)
    with remote(laptop) as client:
        job = client.pause(client.submit(digits)).id
    with killed_at_the_end(
        subprocess.Popen(
            [LABELMILL, "status", job, "--watch", "--json"],
            env=laptop.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        # When the server is killed
        server.kill()
        while "trying again" not in line:
            line = process.stderr.readline()
            assert line
        # Then following goes on when it is there again
        server.start()
        assert laptop.json("resume", job)["paused"] is False
        out, err = process.communicate(timeout=COMMAND_SECONDS)
    assert process.returncode == 0, err
    assert json.loads(out)["succeeded"] == 10_000
