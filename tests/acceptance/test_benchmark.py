"""`make bench`, of few images: it runs, and it compares what it says that it compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.console import COMMAND_SECONDS, Home, stop

PROJECT = Path(__file__).parents[2]
IMAGES = 300


def test_both_sides_classify_the_same_images_to_the_same_labels(
    trained: Home, mnist_dir: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "model").symlink_to(trained.path)  # in which it finds the model that it would train
    options = ["--work", "sqlite", "--images", f"{IMAGES}", "--rounds", "2", "--processes", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *options, "--work-dir", str(kept), "--json", str(tmp_path)],
        cwd=PROJECT,
        env=trained.environment | {"LABELMILL_MNIST_DIR": str(mnist_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=COMMAND_SECONDS)
    finally:
        stop(process, seconds=COMMAND_SECONDS)  # which ends the stack that it started, too
    # It compares each image's label with the other side's itself, and fails where one differs.
    assert process.returncode == 0, said
    found = json.loads((tmp_path / "sqlite.json").read_text())
    assert found["images"] == IMAGES
    for one in found["rounds_seconds"]:
        assert one["pipeline"] > one["submit"] > 0
        assert one["bare_loop"] > 0
    assert len(found["rounds_seconds"]) == 2
