"""`make release` makes a wheel that knows its version and revision, and checksums of everything."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_release_knows_what_it_is(tmp_path: Path) -> None:
    # Given a clean checkout
    checkout = tmp_path / "checkout"
    run("git", "clone", "--quiet", str(PROJECT), str(checkout), cwd=tmp_path)
    revision = run("git", "rev-parse", "--short=12", "HEAD", cwd=checkout).strip()

    # When a release is made
    run("make", "-o", "install", "release", f"BIN={Path(sys.executable).parent}", cwd=checkout)

    # Then its checksums are right, its wheel shows version and revision, and the checkout is unchanged
    dist = checkout / "dist"
    assert run("sha256sum", "--check", "SHA256SUMS", cwd=dist).count(": OK") == 6
    [wheel] = dist.glob("*.whl")
    target = tmp_path / "installed"
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target))
    run(*install, str(wheel), cwd=tmp_path)
    told = run(sys.executable, "-m", "labelmill", "--version", cwd=tmp_path, PYTHONPATH=str(target))
    assert told.split() == ["labelmill", f"{metadata.version('labelmill')},", "revision", revision]
    assert run("git", "status", "--porcelain", cwd=checkout) == ""
