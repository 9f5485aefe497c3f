"""The page that submits jobs: what it offers to whom, and the archive that its script makes of a folder."""

from __future__ import annotations

import json
import re
import tarfile
from http import HTTPStatus
from pathlib import Path
from typing import Final

import httpx
import pytest

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.learning.models import point_alias
from jobs.limits import ArchiveLimits
from labelmill.web import new_job
from producer.sources.tars import is_packed, read_packed
from tests.conftest import ModelMaker
from tests.programs import run_node

_TAR: Final = Path(new_job.__file__).parent / "static" / "tar.js"

#: Writes an archive of files with these paths and sizes.
_ARCHIVE: Final = """
import { readFileSync, writeFileSync } from "node:fs";
import { runInThisContext } from "node:vm";
const [script, output, entries] = process.argv.slice(1);
runInThisContext(readFileSync(script, "utf8"));
const sevens = (size) => new Blob([new Uint8Array(size).fill(7)]);
const files = JSON.parse(entries).map(([path, size]) => ({ path, file: sevens(size) }));
writeFileSync(output, new Uint8Array(await new Blob(tarPieces(files)).arrayBuffer()));
"""

#: Writes the headers of an archive of one file that has this size, without its content.
_HEADERS: Final = """
import { readFileSync, writeFileSync } from "node:fs";
import { runInThisContext } from "node:vm";
const [script, output, size] = process.argv.slice(1);
runInThisContext(readFileSync(script, "utf8"));
const file = { size: Number(size) };
const pieces = tarPieces([{ path: "large.png", file }]);
writeFileSync(output, new Uint8Array(await new Blob(pieces.slice(0, pieces.indexOf(file))).arrayBuffer()));
"""


def page(api: httpx.Client, ledger: Ledger, role: Role = Role.SUBMIT) -> str:
    """Return the page's content, as a browser gets it with a new key."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "person", role)
    with httpx.Client(base_url=api.base_url.join("/"), headers={"Accept": "text/html"}) as browser:
        assert browser.post("/sign-in", data={"key": key}).status_code == HTTPStatus.SEE_OTHER
        answer = browser.get("/new")
    assert answer.status_code == HTTPStatus.OK
    return answer.text.partition("<main")[2]


def test_without_a_model_the_page_says_what_to_do_first(api: httpx.Client, ledger: Ledger) -> None:
    told = page(api, ledger)
    assert "There is no model yet" in told
    assert "labelmill train" in told
    # Only an administrator can start a training
    assert 'href="/runs"' not in told
    assert 'href="/runs"' in page(api, ledger, Role.ADMIN)


def test_the_page_offers_champions_first_and_all_models(
    api: httpx.Client, ledger: Ledger, make_model: ModelMaker
) -> None:
    # Given a champion and a challenger for digits, and a model for birds that nobody has promoted
    champion, challenger = make_model(b"one"), make_model(b"two", champion=False)
    bird = make_model(b"three", champion=False, dataset="birds")
    with ledger.transaction() as connection:
        point_alias(connection, "challenger", challenger.id)

    # Then the list has the champion of digits first, and each model by dataset
    text = page(api, ledger)
    offered = re.findall(r'<option value="(\S+)" data-field="(\w+)">([^<]+)', text)
    assert offered[0] == ("mnist", "dataset", "mnist: champion")
    assert {(value, field) for value, field, _ in offered[1:]} == {
        (each.id, "model") for each in (champion, challenger, bird)
    }
    assert re.findall(r'<optgroup label="(\w+)"', text) == ["mnist", "birds"]
    shown = {value: words for value, _, words in offered}
    assert shown[challenger.id].endswith("challenger")

    # And a browser without JavaScript is told which command does the same
    assert "labelmill submit FOLDER" in text.partition("<noscript>")[2].partition("</noscript>")[0]


@pytest.mark.parametrize("size", [8**11 - 1, 8**11])
def test_the_size_of_a_huge_file_is_right(tmp_path: Path, size: int) -> None:
    run_node(_HEADERS, str(_TAR), str(tmp_path / "large.tar"), str(size))
    with tarfile.open(tmp_path / "large.tar") as archive:
        archive.next()
        found = archive.next()
    assert found is not None
    assert (found.name, found.size) == ("large.png", size)


def test_a_browsers_archive_keeps_all_names_and_bytes(tmp_path: Path) -> None:
    names = [
        "7/a.png",
        "größe/ 1.png ",
        "two\nlines.png",
        "../a.png",
        "x" * 100,
        "x" * 101,
        "é" * 60 + ".png",
        f"{'deep/' * 40}😀.png",
        "<b>&\"'.png",
    ]
    sizes = [0, 1, 511, 512, 513, 1024, 10_000, 7, 8]
    entries = list(zip(names, sizes, strict=True))

    # When the page packs files with such names, then the server reads all of them back, in order
    path = tmp_path / "images.tar"
    run_node(_ARCHIVE, str(_TAR), str(path), json.dumps(entries))
    assert is_packed(str(path))
    found = read_packed(str(path), max_bytes=100_000, limits=ArchiveLimits())
    assert [(each.name, each.data) for each in found] == [(name, b"\7" * size) for name, size in entries]

    # And so does any program that reads TAR
    with tarfile.open(path) as archive:
        assert archive.getnames()[1:] == names
