"""The reference is made from the code, so everything there has a text; other pages name what exists."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Table

from jobs.described import DescribedEnum
from jobs.errors import ErrorCode
from jobs.ledger.counters import AttemptEnd
from jobs.schema import ChunkState, DeliveryState, JobState, RunState, metadata
from jobs.settings import ENV_PREFIX, Settings, known_variables
from labelmill.cli import COMMANDS, load_command
from labelmill.operations.metric_families import METRICS
from labelmill.server.problems import ProblemCode

PROJECT = Path(__file__).parents[2]
GENERATOR = PROJECT / "docs" / "_ext" / "generated.py"
#: On a code host, a page shows no list.
MADE_FROM_CODE = "The lists on this page are made from the code: `make docs` builds the site that shows them."
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])


def read(name: str) -> str:
    return (PROJECT / name).read_text()


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_text(field: str) -> None:
    assert Settings.model_fields[field].description


def test_every_generated_list_is_on_a_page_that_says_so() -> None:
    lists = runpy.run_path(str(GENERATOR))["LISTS"]
    shown = []
    for page in (PROJECT / "docs" / "reference").glob("*.md"):
        text = page.read_text()
        names = re.findall(r"^<!-- generated: (\w+) -->$", text, re.MULTILINE)
        assert text.count(MADE_FROM_CODE) == bool(names), page
        shown += names
    assert sorted(shown) == sorted(lists)


@pytest.mark.parametrize(
    "member",
    [
        member
        for kind in (ErrorCode, ProblemCode, JobState, ChunkState, RunState, DeliveryState, AttemptEnd)
        for member in kind
    ],
)
def test_every_code_and_state_has_a_meaning(member: DescribedEnum) -> None:
    assert member.meaning


def test_every_metric_has_a_text() -> None:
    assert [name for name, each in METRICS.items() if not each.text] == []


def test_every_call_and_object_of_the_api_has_texts() -> None:
    generated = runpy.run_path(str(GENERATOR))
    api = generated["_openapi"]()
    for path, methods in api["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
            for each in operation.get("parameters", ()):
                assert each["description"], f"{path}: {each['name']}"
    for name, schema in api["components"]["schemas"].items():
        if name in generated["_ELSEWHERE"]:
            continue
        assert schema.get("description"), name
        for field, each in schema.get("properties", {}).items():
            assert each.get("description") or "const" in each, f"{name}.{field}"


def test_every_setting_that_a_document_names_exists() -> None:
    known = known_variables()
    for document in DOCUMENTS:
        for name in re.findall(rf"{ENV_PREFIX}[A-Z_]*[A-Z]", document.read_text()):
            assert name in known, f"{document.name}: {name}"


def test_every_command_is_in_the_table_of_commands() -> None:
    lines = read("docs/reference/commands.md").splitlines()
    table = "\n".join(line for line in lines if line.startswith("|"))
    assert [name for name in COMMANDS if f"[`{name}`](#" not in table] == []


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
def test_every_command_and_option_has_a_text(name: str, command: Any) -> None:
    assert command.help, name
    assert [each.name for each in command.params if each.name != "help" and not each.help] == []


@pytest.mark.parametrize("table", metadata.tables.values(), ids=lambda table: table.name)
def test_every_table_and_column_has_a_text(table: Table) -> None:
    assert table.info.get("doc")
    assert [column.name for column in table.columns if not column.doc] == []


def test_every_secret_can_be_changed() -> None:
    # Grafana reads its password only when it creates its volume, and then by the page's own command.
    secrets = set(yaml.safe_load(read("docker-compose.yml"))["secrets"]) - {"grafana_password"}
    [rotated] = re.findall(
        r"^for name in ((?:[a-z_]+|\\\n| )+);", read("deploy/compose/rotate"), re.MULTILINE
    )
    assert set(rotated.replace("\\", " ").split()) == secrets
    assert "<secrets/grafana_password" in read("docs/how-to/deploy.md")


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
    chapter = read("CONTRIBUTING.md").partition("five files")[2]
    tour = re.findall(r"^\d\. \[([\w/.]+)\]", chapter, re.MULTILINE)
    assert len(tour) == 5
    for here, following in pairwise(tour):
        module = following.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        docstring = read(here).split('"""')[1]
        assert module in docstring, f"{here} does not name {module}"


def test_the_guarantees_are_those_of_the_readme() -> None:
    guarantees = re.findall(
        r"^(\d)\. ", read("README.md").partition("guaranteed")[2].partition("##")[0], re.MULTILINE
    )
    assert guarantees == re.findall(r"^## (\d)\. ", read("docs/explanation/guarantees.md"), re.MULTILINE)
