"""The scripts in deploy/compose, as far as they need no Docker engine; tests/compose runs the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy.engine import make_url

PROJECT: Final = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the files that the scripts read."""
    for name in ("deploy/compose", "migrations/versions"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    for name in ("docker-compose.yml", "compose.s3.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path


def run(checkout: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `sh deploy/compose/NAME ...` without a Docker engine."""
    return subprocess.run(
        ["sh", f"deploy/compose/{name}", *arguments],
        cwd=checkout,
        env=os.environ | {"DOCKER_HOST": "unix:///nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["upgrade", "backup", "restore", "check", "rotate"])
def test_a_wrong_call_says_how_it_is_called(checkout: Path, name: str) -> None:
    done = run(checkout, name, "--nonsense", "--more")
    assert (done.returncode, done.stderr.split()[:2]) == (2, ["usage:", "sh"])


def test_urls_hold_passwords_in_percent_form(checkout: Path) -> None:
    # Given passwords that somebody has chosen
    password = "p@ss:w/rd?#%41"
    secrets = checkout / "secrets"
    secrets.mkdir()
    for name in ("redis", "labelmill"):
        (secrets / f"{name}_password").write_text(f"{password}\n")

    # When the other secrets are made
    assert run(checkout, "make-secrets").returncode == 0

    # Then the URLs have these passwords
    assert make_url((secrets / "ledger_url").read_text().strip()).password == password
    assert unquote(urlsplit((secrets / "broker_url").read_text().strip()).password or "") == password
    generated = (secrets / "labelmill_owner_password").read_text()
    assert make_url((secrets / "ledger_owner_url").read_text().strip()).password == generated


def test_an_empty_secret_is_made_in_place(checkout: Path) -> None:
    # Given a password that a running container has mounted, which is the file, not its name
    assert run(checkout, "make-secrets").returncode == 0
    password = checkout / "secrets" / "redis_password"
    before = password.stat().st_ino
    password.chmod(0o644)
    password.write_text("")

    # When it is made again, then it is the same file, and nobody can write it
    assert run(checkout, "make-secrets").returncode == 0
    assert len(password.read_text()) == 48
    assert (password.stat().st_ino, password.stat().st_mode & 0o777) == (before, 0o444)


def test_the_check_finds_nothing_wrong_with_the_defaults(checkout: Path) -> None:
    assert run(checkout, "make-secrets").returncode == 0
    assert not (checkout / ".env").exists()
    done = run(checkout, "check")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_names_all_problems_at_once(checkout: Path) -> None:
    assert run(checkout, "make-secrets").returncode == 0
    secrets = checkout / "secrets"
    secrets.chmod(0o755)
    (secrets / "broker_url").unlink()
    (secrets / "ledger_url").chmod(0o600)
    (secrets / "redis_password").unlink()
    (secrets / "redis_password").write_text("two words")
    (checkout / ".env").write_text(
        "# fine:\nMETRICS_PORT=9187 # too\nCOMPOSE_PROFILES=monitoring\nLABELMILL_CHUNK_IMAGES=\n"
        "LABELMILL_PROCESES=2\nUNHEARD_OF=1\nWORKERS=three\nAPI_PORT=99999\nWORKER_MEMORY='4 gigs'\n"
        "no value\n"
    )
    done = run(checkout, "check")
    assert done.returncode == 1
    found = [line.strip() for line in done.stderr.splitlines()[1:]]
    expected = [
        "secrets/ is open to other users: chmod 0700 secrets",
        "secrets/redis_password holds a space",
        "secrets/ledger_url cannot be read by the users of the containers: chmod 0444 secrets/ledger_url",
        "secrets/broker_url is missing or empty: rm -f secrets/broker_url; sh deploy/compose/make-secrets",
        ".env: LABELMILL_PROCESES is not read by docker-compose.yml: did you mean LABELMILL_PROCESSES",
        ".env: UNHEARD_OF is not read by docker-compose.yml: see docs",
        ".env: WORKERS=three is not a number from 0 to 1000",
        ".env: API_PORT=99999 is not a number from 0 to 65535",
        ".env: WORKER_MEMORY=4 gigs is not a size",
        ".env: this line is not NAME=VALUE: no value",
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_the_check_knows_the_files_that_compose_reads(checkout: Path) -> None:
    # Given a deployment with buckets
    assert run(checkout, "make-secrets").returncode == 0
    settings = "LABELMILL_STORE_URL=s3://bucket/labelmill\n"
    (checkout / ".env").write_text(
        f"export COMPOSE_FILE=docker-compose.yml:compose.s3.yaml # buckets\n{settings}"
    )
    keys = checkout / "secrets" / "aws_config"

    # Then the keys must be there, and readable for the containers
    assert "secrets/aws_config is missing or empty: write it" in run(checkout, "check").stderr
    keys.write_text("[default]\naws_access_key_id = x\n")
    keys.chmod(0o600)
    assert "secrets/aws_config cannot be read by the users" in run(checkout, "check").stderr
    keys.chmod(0o444)
    assert run(checkout, "check").returncode == 0

    # And without the file for buckets, its setting is not read
    (checkout / ".env").write_text(settings)
    assert ".env: LABELMILL_STORE_URL is not read" in run(checkout, "check").stderr


def test_a_backup_that_fails_leaves_nothing(checkout: Path) -> None:
    done = run(checkout, "backup", "backups/first")
    assert done.returncode != 0
    assert "nothing was kept" in done.stderr
    assert list((checkout / "backups").iterdir()) == []


def test_a_backup_is_checked_before_anything_is_touched(checkout: Path) -> None:
    # Given a backup
    backup = checkout / "backup"
    backup.mkdir()
    (backup / "ledger.dump").write_text("rows")
    (backup / "migration").write_text("0001\n")

    def seal() -> None:
        sums = subprocess.run(
            ["cksum", "ledger.dump", "migration"], cwd=backup, capture_output=True, check=True
        )
        (backup / "checksums").write_bytes(sums.stdout)

    def refused(reason: str) -> None:
        done = run(checkout, "restore", "backup")
        assert (done.returncode, reason in done.stderr) == (2, True), done.stderr

    # Then one that was not completed, is damaged, or is of a newer version is refused
    refused("is not a complete backup")
    seal()
    (backup / "ledger.dump").write_text("rowz")
    refused("is damaged")
    (backup / "migration").write_text("9999\n")
    seal()
    refused("is of a newer version")
    assert not (checkout / "secrets").exists()
