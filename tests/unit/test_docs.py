"""The documents and the code agree: every setting, command, option, error code and file that is named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from inspect import isfunction
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml

import jobs.ledger
from jobs.errors import ErrorCode
from jobs.schema import ChunkState, JobState, RunState, metadata
from jobs.settings import ENV_PREFIX, Settings, known_variables
from labelmill.cli import COMMANDS, load_command

PROJECT = Path(__file__).parents[2]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])


def read(name: str) -> str:
    return (PROJECT / name).read_text()


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_documented(field: str) -> None:
    assert ENV_PREFIX + field.upper() in read("docs/settings.md")
    assert Settings.model_fields[field].description


def test_every_setting_that_a_document_names_exists() -> None:
    known = known_variables()
    for document in DOCUMENTS:
        for name in re.findall(rf"{ENV_PREFIX}[A-Z_]*[A-Z]", document.read_text()):
            assert name in known, f"{document.name}: {name}"


def test_every_command_is_in_the_table_of_commands() -> None:
    table = "\n".join(line for line in read("docs/commands.md").splitlines() if line.startswith("| [`"))
    missing = [name for name in COMMANDS if not re.search(rf"`{name}[ `]", table)]
    assert missing == []


def _commands() -> Iterator[tuple[str, Any]]:
    for name in COMMANDS:
        command = load_command(name)
        subcommands = getattr(command, "commands", None)
        if subcommands:
            for below, subcommand in subcommands.items():
                yield f"{name} {below}", subcommand
        else:
            yield name, command


@pytest.mark.parametrize(
    ("name", "command"), list(_commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_option_is_documented(name: str, command: Any) -> None:
    text = read("docs/commands.md")
    assert f"labelmill {name}" in text
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert option in text, f"{name} {option}"


def test_every_table_has_its_word() -> None:
    for name in metadata.tables:
        assert f"`{name}`" in read("docs/glossary.md"), name


@pytest.mark.parametrize("state", [*JobState, *ChunkState, *RunState])
def test_every_state_has_its_arrow(state: str) -> None:
    assert re.search(rf"^\| \w \| .*\b{state}\b", read("docs/states.md"), re.MULTILINE)


def test_whatever_drops_a_chunk_is_named_at_its_arrow() -> None:
    # given every function of the ledger that drops chunks nobody is at, or gives back one that somebody had
    drop, give_back = _callers_in_the_ledger("drop_chunks"), _callers_in_the_ledger("_give_back")
    assert "jobs.ledger.maintenance.drop_leftover_chunks" in drop
    assert "jobs.ledger.claims.release_chunk" in give_back

    # then its arrow names it; what a worker has is dropped only after its lease, so not with its job
    chunk = read("docs/states.md").partition("## Chunk")[2].partition("## Training run")[0]
    arrows = dict(re.findall(r"^\| (\w) \| (.*)$", chunk, re.MULTILINE))
    for arrow, names in {
        "h": drop,
        "j": drop - {"jobs.ledger.claims.drop_waiting_chunks"} | give_back,
    }.items():
        assert {name for name in names if f"`{name}`" not in arrows[arrow]} == set(), arrow


def _callers_in_the_ledger(called: str) -> set[str]:
    """The functions of `jobs.ledger` whose code names this one."""
    return {
        f"{module.__name__}.{name}"
        for found in iter_modules(jobs.ledger.__path__, "jobs.ledger.")
        for module in [import_module(found.name)]
        for name, function in vars(module).items()
        if isfunction(function) and function.__module__ == module.__name__
        if called in function.__code__.co_names
    }


def test_every_error_code_is_documented() -> None:
    for code in ErrorCode:
        assert f"`{code}`" in read("docs/errors.md"), code


def test_passwords_that_are_read_only_once_are_kept_when_the_others_change() -> None:
    # given the secrets that a server reads when it sets up its volume, and never again
    services = yaml.safe_load(read("docker-compose.yml"))["services"]
    read_once = {
        Path(value).name
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if name in ("POSTGRES_PASSWORD_FILE", "GF_SECURITY_ADMIN_PASSWORD__FILE")
    }
    assert len(read_once) == 2

    # then whoever changes the passwords is told to keep them
    told = re.search(r"remove\s+`secrets/`\s+but\s+for([^,]*),", read("docs/operations.md"))
    assert told is not None
    assert set(re.findall(r"`(\w+)`", told[1])) == read_once
    # and is sent to a service that there is
    assert set(re.findall(r"exec -T (\w+)", read("docs/operations.md"))) <= set(services)


def test_every_dependency_has_earned_its_place() -> None:
    decisions = read("docs/decisions.md").lower()
    project = tomllib.loads(read("pyproject.toml"))
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    for requirement in {line for group in groups for line in group if isinstance(line, str)}:
        name = re.split(r"[\[>=<;]", requirement)[0]
        assert re.search(rf"`{re.escape(name)}[`\[]", decisions), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_the_tour_names_each_next_file() -> None:
    tour = re.findall(r"^\d\. \[([\w/.]+)\]", read("README.md").partition("five files")[2], re.MULTILINE)
    assert len(tour) == 5
    for here, following in pairwise(tour):
        module = following.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        docstring = read(here).split('"""')[1]
        assert module in docstring, f"{here} does not name {module}"


def test_the_guarantees_are_those_of_the_readme_and_their_tests_exist() -> None:
    text = read("docs/guarantees.md")
    guarantees = re.findall(
        r"^(\d)\. ", read("README.md").partition("guaranteed")[2].partition("##")[0], re.MULTILINE
    )
    for number in guarantees:
        assert f"## {number}. " in text
    for path, name in re.findall(r"`(tests/[\w/.]+)::(\w+)`", text):
        assert f"def {name}(" in read(path), f"{path}::{name}"
