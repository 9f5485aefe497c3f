"""No room left: a producer is told and leaves nothing behind, a worker gives back and goes on later."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from jobs.settings import Settings
from labelmill import Client
from tests.console import LABELMILL, Home
from tests.faults.checker import chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix


@pytest.mark.parametrize("room", [40_000, 300_000, 1_000_000])
def test_a_producer_without_room_says_so_and_leaves_nothing(
    new_home: Home, tmp_path: Path, matrix: Matrix, room: int
) -> None:
    with matrix.trials("disk full while submitting", "I1", short=1, long=1) as trials:
        # given a folder of images, and a limit on what a file may grow to
        folder = tmp_path / "images"
        folder.mkdir()
        for picture in pictures(600):
            (folder / picture.name).write_bytes(picture.data + bytes(2_000))
        stored = _files(new_home.path / "store")

        # when it is submitted
        done = subprocess.run(
            [LABELMILL, "submit", str(folder)],
            env=new_home.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        )

        # then the person is told in a sentence, and nothing of the job is left
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert "File too large" in done.stderr or "cannot be" in done.stderr, done.stderr
        assert _files(new_home.path / "store") == stored
        with Client(Settings.load(home=new_home.path)) as client:
            assert client.jobs() == []
        trials.ran(1)


def test_a_worker_without_room_gives_back_and_goes_on_later(harnesses: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("disk full while recording", "I1-I4", short=6, long=30) as trials:
        full = 0
        while full < trials.wanted:
            # given a database that has no room, now and then, for what a worker wants to record
            images = pictures(800)
            jobs = []
            for harness in harnesses:
                harness.plan.set(Rule("writing", "fill the disk", times=8, every=5))
                jobs.append(harness.submit(images, chunk_images=20))

            # when there is room again, then the job ends, and nothing counts as a crash
            for harness, job in zip(harnesses, jobs, strict=True):
                verdict = harness.judge(job, images)
                times = len(harness.plan.events("fill the disk"))
                trials.ran(times, verdict)
                full += times
                assert {chunk["crashes"] for chunk in chunk_rows(harness.url, job)} == {0}


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
