"""Images submitted by reference: workers read them where they are, if they are still what they were."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from jobs.settings import ENV_PREFIX
from tests.console import Home, agreement, rows


@pytest.fixture
def root(few_digits: Path, tmp_path: Path) -> Path:
    """An allowed folder with five of each digit, twice."""
    for name in ("kept", "spoiled"):
        shutil.copytree(few_digits, tmp_path / "root" / name)
    return tmp_path / "root"


def test_by_reference_each_image_gets_its_label_or_what_became_of_its_file(
    new_home: Home, few_digits: Path, root: Path, tmp_path: Path
) -> None:
    # given digits that are submitted by reference while no worker is up: by path, and by URL
    new_home.extra = {ENV_PREFIX + "REFERENCE_ROOTS": str(root), ENV_PREFIX + "CHUNK_IMAGES": "20"}
    kept = new_home.ok("submit", root / "kept", "--by-reference").split()[-1]
    by_url = new_home.ok("submit", (root / "kept").as_uri(), "--by-reference").split()[-1]
    spoiled = new_home.ok("submit", root / "spoiled", "--by-reference").split()[-1]

    # then no payload holds an image: they are smaller than the images, and not one byte of a PNG is in them
    payloads = list(new_home.path.glob("store/payloads/*/*.msgpack"))
    assert len(payloads) == 9
    assert all(b"PNG\r\n" not in path.read_bytes() for path in payloads)

    # and what lies outside of the root is refused, with nothing stored
    refused = new_home.run("submit", root / "kept", few_digits / "7", "--by-reference")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "LABELMILL_REFERENCE_ROOTS" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {job["id"] for job in new_home.json("jobs")} == {kept, by_url, spoiled}
    assert set(new_home.path.glob("store/payloads/*/*.msgpack")) == set(payloads)

    # when files vanish, change and are exchanged, before a worker comes to read them
    expected = _spoil(root / "spoiled", few_digits)
    with new_home.started("up", log=tmp_path / "up.log"):
        assert new_home.run("status", kept, "--watch").returncode == 0
        assert new_home.run("status", by_url, "--watch").returncode == 0
        assert new_home.run("status", spoiled, "--watch").returncode == 3
        by_value = new_home.ok("submit", few_digits, "--watch").split()[-1]

    # then the labels are those that the same images get by value
    def outcomes(job: str, folder: Path) -> dict[str, str]:
        found = rows(new_home.ok("predictions", job, "--format", "csv"))
        return {str(Path(row["name"]).relative_to(folder)): row["label"] or row["error"] for row in found}

    labels = outcomes(by_value, few_digits)
    assert len(labels) == 50
    assert agreement(rows(new_home.ok("predictions", kept, "--format", "csv"))) >= 0.9
    assert outcomes(kept, root / "kept") == outcomes(by_url, root / "kept") == labels

    # and each spoiled file has its code, and its neighbours have their labels
    assert outcomes(spoiled, root / "spoiled") == labels | expected


def _spoil(folder: Path, few_digits: Path) -> dict[str, str]:
    """Exchanges some files of a copy of `few_digits`; gives back what they are to become."""
    names = [str(min((few_digits / str(digit)).iterdir()).relative_to(few_digits)) for digit in range(6)]
    for name in names:
        (folder / name).unlink()
    gone, changed, grown, linked_out, linked_in, piped = names

    # as many bytes with a bit flipped in the last, and one byte more
    original = (few_digits / changed).read_bytes()
    (folder / changed).write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    (folder / grown).write_bytes((few_digits / grown).read_bytes() + b"\0")
    # the very same bytes, but outside of the root; and elsewhere below it, which is as good
    (folder / linked_out).symlink_to(few_digits / linked_out)
    (folder / linked_in).symlink_to(folder.parent / "kept" / linked_in)
    os.mkfifo(folder / piped)
    return {
        gone: "source_missing",
        changed: "source_changed",
        grown: "source_changed",
        linked_out: "source_forbidden",
        piped: "source_forbidden",
    }
