"""Sphinx extension: the lists of the reference, made from the code that they describe.

A page names a list as `<!-- generated: errors -->`. The list replaces that line when Sphinx reads the page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from sqlalchemy import Column
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from jobs.described import DescribedEnum
from jobs.errors import ErrorCode
from jobs.ledger.counters import AttemptEnd
from jobs.schema import ChunkState, DeliveryState, JobState, RunState, metadata
from jobs.settings import ENV_PREFIX, SECRETS, Settings, known_variables
from labelmill.cli import COMMANDS, load_command
from labelmill.operations.metric_families import METRICS, exported_name
from labelmill.server.application import create_app
from labelmill.server.metrics import Measured
from labelmill.server.problems import ProblemCode
from labelmill.server.schemas import MAX_NUMBER

_PIPE: Final = r"\|"  # in a cell of a table

_MARKER: Final = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

#: The settings that have a chapter of their own; all others are in the general list.
_LIMITS: Final = tuple(name for name in Settings.model_fields if name.startswith(("max_", "image_")))
_API: Final = ("api_hosts", "api_origins", "api_rate", "api_uploads")


#: The objects of the HTTP API that other pages describe.
_ELSEWHERE: Final = {
    **dict.fromkeys(("JobState", "DeliveryState"), "[state](sql.md#states)"),
    "Event": "[event](../how-to/webhooks.md#events)",
    "ReviewKind": "kind",  # described by the field that has it
}

#: What a string of the HTTP API is, by its format.
_FORMATS: Final = {"binary": "bytes", "date-time": "time in ISO 8601"}

#: The lists of objects of the HTTP API, which have no chapter of their own.
_LIST: Final = re.compile(r"\w+(Page|Listing)")

_ALERTS: Final = Path(__file__).parents[2] / "deploy" / "monitoring" / "alerts.yml"

#: The tables that people query most come first.
_MAIN_TABLES: Final = ("jobs", "predictions", "chunks")


def setup(app: Any) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", _insert)
    return {"parallel_read_safe": True}


def _insert(_app: Any, _page: str, source: list[str]) -> None:
    source[0] = _MARKER.sub(lambda found: "\n".join(LISTS[found[1]]()), source[0])


# ---- text -------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Return a text of the code as Markdown, with links to the settings and commands that it names."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(_code(part) if part.startswith("`") else _plain(part) for part in parts)


def _code(span: str) -> str:
    name = span.strip("`")
    link = _link(name)
    return f"[{span}]({link})" if link else span


def _plain(text: str) -> str:
    text = re.sub(r"([*<>\[\]])", r"\\\1", text)
    text = re.sub(r"(?<!\S)--[a-z][a-z-]*", r"`\g<0>`", text)
    return re.sub(rf"\b{ENV_PREFIX}[A-Z_]*[A-Z]", lambda found: _code(f"`{found[0]}`"), text)


def _link(name: str) -> str:
    """Return the link to the setting or the command with this name; empty if it is neither."""
    if name in known_variables():
        return f"settings.md#{name.removesuffix('_FILE').lower()}"
    words = name.removeprefix("labelmill ").split()
    if name.startswith("labelmill ") and words and words[0] in COMMANDS:
        return f"commands.md#{words[0]}"
    return ""


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    titles = list(titles)
    yield ""
    yield f"| {' | '.join(titles)} |"
    yield "|" + " --- |" * len(titles)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', _PIPE) for cell in row)} |"
    yield ""


def _members(kind: type[DescribedEnum], title: str) -> Iterator[str]:
    return table([title, "meaning"], ([f"`{each}`", markdown(each.meaning)] for each in kind))


# ---- the lists --------------------------------------------------------------------------------------------


def errors() -> Iterator[str]:
    """Yield the error codes of images."""
    return _members(ErrorCode, "code")


def problems() -> Iterator[str]:
    """Yield the codes of the HTTP API's errors, by status."""
    rows = []
    for each in ProblemCode:
        statuses = re.findall(r"\b(\d{3}): ", each.meaning)
        rows.append([", ".join(statuses), f"`{each}`", markdown(re.sub(r"^\d{3}: ", "", each.meaning))])
    return table(["status", "`code`", "why"], rows)


def metrics() -> Iterator[str]:
    """Yield the metrics that `labelmill metrics` serves."""
    rows = (
        [
            f"`{exported_name(name)}`",
            "gauge" if each.type == "info" else each.type,
            ", ".join(f"`{label}`" for label in each.labels),
            markdown(each.text),
        ]
        for name, each in METRICS.items()
    )
    return table(["metric", "type", "labels", "meaning"], rows)


def api_metrics() -> Iterator[str]:
    """Yield the metrics that an HTTP API serves."""
    return table(
        ["metric", "type", "labels", "meaning"],
        (
            [f"`{each.name}`", each.type, "`status`", markdown(each.documentation)]
            for each in Measured(_no_application).registry.collect()
        ),
    )


async def _no_application(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nothing: only the metrics are wanted."""


def alerts() -> Iterator[str]:
    """Yield the alerts for Prometheus."""
    [group] = yaml.safe_load(_ALERTS.read_text())["groups"]
    rows = (
        [
            f"`{each['alert']}`",
            *(_with_labels(each["annotations"][part]) for part in ("summary", "description")),
        ]
        for each in group["rules"]
    )
    return table(["alert", "meaning", "what to do"], rows)


def _with_labels(text: str) -> str:
    """Return the text of an alert, with the names of the labels that Prometheus puts into it."""
    return markdown(re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: found[1].upper(), text))


def attempts() -> Iterator[str]:
    """Yield how an attempt can end."""
    return _members(AttemptEnd, "`end`")


def states() -> Iterator[str]:
    """Yield the states of jobs, chunks, training runs and webhook messages."""
    kinds = {"job": JobState, "chunk": ChunkState, "training run": RunState, "webhook message": DeliveryState}
    for title, kind in kinds.items():
        yield from _members(kind, title)


def tables() -> Iterator[str]:
    """Yield the tables of the ledger, with their columns."""
    for name in dict.fromkeys((*_MAIN_TABLES, *sorted(metadata.tables))):
        each = metadata.tables[name]
        yield f"### {name}\n"
        yield f"{markdown(each.info['doc'][:1].upper() + each.info['doc'][1:])}."
        rows = ([f"`{column.name}`", _column_text(column)] for column in each.columns)
        yield from table(["column", "content"], rows)


def _column_text(column: Column[Any]) -> str:
    text = markdown(column.doc or "").replace("see the states", "see [states](#states)")
    return text.replace("error code", "[error code](errors.md)") + (" (*key*)" if column.primary_key else "")


def settings() -> Iterator[str]:
    """Yield the settings that have no chapter of their own."""
    return _settings(name for name in Settings.model_fields if name not in (*_LIMITS, *_API))


def limits() -> Iterator[str]:
    """Yield the settings that limit images, jobs and archives."""
    return _settings(_LIMITS)


def api_settings() -> Iterator[str]:
    """Yield the settings of the HTTP API."""
    return _settings(_API)


def _settings(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        field, variable = Settings.model_fields[name], ENV_PREFIX + name.upper()
        text = cleandoc(field.description or "")
        yield f"### {variable}\n"
        if field.examples:
            yield from ("```bash", *(f"{variable}={example}" for example in field.examples), "```\n")
        first, *more = text.split("\n\n")
        facts = []
        if "Default:" not in text:
            facts.append(f"Default: `{_written(field.default)}`.")
        if allowed := _allowed(field):
            facts.append(allowed)
        yield "\n\n".join([" ".join([markdown(first), *facts]), *map(markdown, more)]) + "\n"
        if name in SECRETS:
            yield f"`{variable}_FILE` can name a file that holds the value instead.\n"


def _written(default: Any) -> str:
    """Return a default as it is written in the environment."""
    if isinstance(default, tuple):
        return ",".join(default)
    return f"{default:.15g}" if isinstance(default, float) else str(default)


def _allowed(field: FieldInfo) -> str:
    """Return the values that a setting can have, if its type alone does not say so."""
    choices = [each for kind in (field.annotation, *get_args(field.annotation)) for each in _choices(kind)]
    if choices:
        return f"Allowed: {', '.join(f'`{choice}`' for choice in choices)}."
    least = next((each.ge for each in field.metadata if hasattr(each, "ge")), None)
    most = next((each.le for each in field.metadata if hasattr(each, "le")), None)
    if most is None:
        return ""
    return f"From {least:,g} to {most:,g}." if least is not None else f"More than 0, at most {most:,g}."


def _choices(kind: Any) -> list[str]:
    """Return the values of a type that has only a few."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(each.value) for each in kind]
    return [str(each) for each in get_args(kind)] if get_origin(kind) is Literal else []


def commands() -> Iterator[str]:
    """Yield the commands, with their help and their options."""
    for name in COMMANDS:
        yield from _command("##", name, load_command(name))


def _command(heading: str, name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    below = getattr(command, "commands", {})
    yield f"{heading} {name}\n"
    if not below:
        words = [name, *map(_usage, arguments), *["[OPTIONS]"][: len(options)]]
        yield f"```text\nlabelmill {' '.join(words)}\n```\n"
    yield markdown(command.help) + "\n"
    if not below and command.params:
        rows = ([_names(each), _meaning(each)] for each in (*arguments, *options))
        yield from table(["option", "meaning"], rows)
    if command.epilog and not below:
        examples = [f"$ {line}" for line in command.epilog.splitlines()[1:] if line]
        yield "\n".join(["```console", *examples, "```\n"])
    for word, each in below.items():
        yield from _command("###", f"{name} {word}", each)


def _usage(argument: Any) -> str:
    shown = argument.metavar or "|".join(_values(argument))
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    kind = parameter.type_descriptor.annotation
    metavar = parameter.metavar or {str: "TEXT", int: "N", float: "X"}.get(kind, "")
    return f"`{', '.join(sorted(parameter.opts, key=len, reverse=True))} {metavar}`".replace(" `", "`")


def _meaning(parameter: Any) -> str:
    text, default = markdown(parameter.help or ""), parameter.default
    if values := _values(parameter):
        text += f" One of {', '.join(f'`{each}`' for each in values)}."
    if isinstance(default, str | int | float) and default is not False and "Default:" not in text:
        text += f" Default: `{default}`."
    return text


def _values(parameter: Any) -> list[str]:
    """Return the values that an option can have, if there are only a few."""
    return _choices(parameter.type_descriptor.annotation)


def operations() -> Iterator[str]:
    """Yield the calls of the HTTP API, from its OpenAPI description."""
    tag = None
    for path, methods in _openapi()["paths"].items():
        for method, operation in methods.items():
            if tag != (tag := operation["tags"][0]):
                yield f"### {tag.capitalize()}\n"
            yield f"#### {method.upper()} {path}\n"
            yield markdown(operation["description"]) + "\n"
            rows = [
                [f"`{each['name']}`", each["in"], _kind(each["schema"]).removesuffix(" or null"), _text(each)]
                for each in operation.get("parameters", ())
                if not each["name"].endswith("_id")  # in the path, and named for what it is
            ]
            if rows:
                yield from table(["parameter", "in", "type", "meaning"], rows)
            yield " ".join(_facts(operation)) + "\n"


def _facts(operation: dict[str, Any]) -> Iterator[str]:
    """Yield what a call takes and returns, and who may make it."""
    bodies = [_kind(each["schema"]) for each in operation.get("requestBody", {}).get("content", {}).values()]
    if bodies:
        yield f"Body: {' or '.join(bodies)}."
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            content = answer.get("content", {})
            shown = []
            for kind, each in content.items():
                schema = each.get("schema", {"type": "string"})
                shown.append(f"`{kind}`" if schema.get("type") == "string" else _kind(schema))
            yield f"Answer {status}: {' or '.join(shown) or 'no body'}."
    roles = {role for each in operation.get("security", ()) for scopes in each.values() for role in scopes}
    if roles - {"submit"}:
        yield f"Role: `{', '.join(sorted(roles))}`."


def objects() -> Iterator[str]:
    """Yield the objects of the HTTP API with their fields."""
    for name, schema in sorted(_openapi()["components"]["schemas"].items()):
        if name in _ELSEWHERE or name in _alternatives() or _LIST.fullmatch(name):
            continue
        yield f"### {name}\n"
        yield markdown(schema["description"].split("\n\n")[0]) + "\n"
        fields: dict[str, Any] = {}
        for each in [_openapi()["components"]["schemas"][part] for part in _parts(schema)] or [schema]:
            fields |= {field: kind for field, kind in each["properties"].items() if field not in fields}
        rows = ([f"`{field}`", _kind(each), _text(each)] for field, each in fields.items())
        yield from table(["field", "type", "meaning"], rows)


def _parts(schema: dict[str, Any]) -> list[str]:
    """Return the names of the objects of which a request has one."""
    return [each["$ref"].rpartition("/")[2] for each in schema.get("oneOf", ())]


def _alternatives() -> set[str]:
    """Return the names of the objects that are described as parts of others."""
    return {part for schema in _openapi()["components"]["schemas"].values() for part in _parts(schema)}


def _text(described: dict[str, Any]) -> str:
    if "const" in described:
        return f"always `{described['const']}`"
    text = markdown(described.get("description", ""))
    default = described.get("schema", described).get("default")
    if default is not None and "Default:" not in text:
        text += f". Default: `{str(default).lower() if isinstance(default, bool) else default}`"
    return text.replace("error code", "[error code](errors.md)")


def _kind(schema: dict[str, Any]) -> str:
    """Return a type in words."""
    if "$ref" in schema:
        return _object(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if "properties" in schema:
        return "form with " + " and ".join(f"`{field}`" for field in schema["properties"])
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    low, high = schema.get("minimum"), schema.get("maximum")
    kind: str = schema.get("type", "any")
    if low is not None and high is not None:
        return f"{kind}, {low:g} or more" if high >= MAX_NUMBER else f"{kind}, {low:g} to {high:g}"
    return f"{kind}, at most {schema['maxLength']} characters" if "maxLength" in schema else kind


def _object(name: str) -> str:
    """Return a link to an object, or to the members of a page or list."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    if found := _LIST.fullmatch(name):
        schemas = _openapi()["components"]["schemas"]
        member = schemas[name]["properties"]["data"]["items"]["$ref"].rpartition("/")[2]
        return f"{found[1].lower().replace('listing', 'list')} of {_object(member)}"
    return f"[{name}](#{name.lower()})"


@cache
def _openapi() -> dict[str, Any]:
    """Return the API's description of itself, from a server on a new ledger."""
    logging.disable(logging.INFO)  # of the new ledger
    with TemporaryDirectory() as home:
        client = TestClient(create_app(Settings(home=Path(home))), base_url="http://localhost")
        found: dict[str, Any] = client.get("/openapi.json").json()
    logging.disable(logging.NOTSET)
    return found


LISTS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    each.__name__: each
    for each in (
        *(errors, problems, metrics, api_metrics, alerts, attempts, states, tables),
        *(settings, limits, api_settings, commands, operations, objects),
    )
}
