"""A manifest from the command line: the user's own ids are in all results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.console import Home, rows


@pytest.fixture(scope="module")
def images(few_digits: Path) -> dict[str, Path]:
    """Return images by ids, which say what they show."""
    return {f"{path.parent.name}-{path.stem}": path for path in sorted(few_digits.rglob("*.png"))}


def test_a_manifest_is_submitted_with_the_users_own_ids(
    stack: Home, images: dict[str, Path], tmp_path: Path
) -> None:
    # Given a manifest with its images beside it, one of them twice, and one that is not there
    lines = ["custom_id,path,label"]
    for custom_id, path in images.items():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        lines.append(f"{custom_id},{path.name},{path.parent.name}")
    lines += [f"again,{path.name},", "missing,none.png,"]
    (tmp_path / "digits.csv").write_text("\n".join(lines))

    # When it is only tried, then it is counted, and nothing is stored
    before = stack.ok("jobs")
    found = stack.json("submit", tmp_path / "digits.csv", "--dry-run")
    assert (found["images"], found["duplicates"], found["unreadable"], found["chunks"]) == (52, 1, 1, 1)
    assert stack.ok("jobs") == before
    assert "duplicates  1\n" in stack.ok("submit", tmp_path / "digits.csv", "--dry-run")

    # When it is submitted, then the ids are the names
    done = stack.run("submit", tmp_path / "digits.csv", "--watch")
    assert done.returncode == 3, done.stderr
    predictions = rows(stack.ok("predictions", done.stdout.strip(), "--format", "csv"))
    assert [row["name"] for row in predictions] == [*images, "again", "missing"]
    assert [row["name"] for row in predictions if row["error"]] == ["missing"]

    # And from now on the time can be estimated
    assert stack.json("submit", tmp_path / "digits.csv", "--dry-run")["estimated_seconds"] > 0

    # And an id that is there twice is refused
    with (tmp_path / "digits.csv").open("a") as file:
        file.write(f"\nagain,{path.name},\n")
    refused = stack.run("submit", tmp_path / "digits.csv")
    assert refused.returncode == 2
    assert "line 54: its custom_id 'again' is that of line 52, too" in refused.stderr
