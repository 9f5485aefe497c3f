"""A manifest's rows are images under its owner's ids. A bad row costs one image."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.errors import ErrorCode, SourceError
from jobs.network.references import Roots
from producer.sources import Sources
from producer.sources import manifest as manifests
from producer.sources.manifest import Manifest
from producer.sources.repeats import Repeats
from tests.memory import peak_of
from tests.sources import outcome


def lines(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def found(path: Path, **options: Any) -> list[tuple[str, bytes | ErrorCode]]:
    return [outcome(image) for image in Sources([str(path)], **options)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"a")
    (tmp_path / "photos" / "b.png").write_bytes(b"b")
    return tmp_path


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the host of a web server, and how often each path was requested."""
    asked: dict[str, int] = {}
    together = threading.Barrier(4)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked[path] = asked.get(path, 0) + 1
            status = {"/gone": 404, "/broken": 503, "/away": 302}.get(path, 200)
            if path == "/once" and asked[path] == 1:
                status = 503
            if path.startswith("/together"):
                together.wait(20)  # it answers only if four are requested at the same time
            body = path.encode() if status == 200 else b""
            self.send_response(status)
            self.send_header("Location", "http://10.0.0.1/a.png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"127.0.0.1:{listening.server_address[1]}", asked
    listening.shutdown()
    thread.join()
    listening.server_close()


# ---- the formats --------------------------------------------------------------------------------------

ROWS = [
    {"custom_id": "one", "path": "photos/a.png", "label": "cat"},
    {"custom_id": None, "path": "photos/b.png", "label": None},
    {"custom_id": "three", "path": "photos/none.png", "label": "dog"},
]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "M.NDJSON", "m.parquet"])
def test_each_format_has_the_same_images(folder: Path, name: str) -> None:
    path = folder / name
    if name == "m.csv":
        text = (
            "\ufeffCUSTOM_ID, Path ,label\none,photos/a.png,cat\n,photos/b.png,\nthree,photos/none.png,dog\n"
        )
        path.write_text(text)
    elif name == "m.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(lines(*ROWS))
    assert found(path) == [
        ("one", b"a"),
        (f"{folder}/photos/b.png", b"b"),
        ("three", ErrorCode.SOURCE_MISSING),
    ]


def test_request_lines_of_openai_are_rows(folder: Path) -> None:
    # Given lines as its Batch API takes them, whose own url is not an image's
    def line(custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}

    def chat(*links: str) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": link}} for link in links]
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}]}

    responses = {"input": [{"content": [{"type": "input_image", "image_url": data_url(b"r")}]}]}
    rows = [
        line("chat", chat(data_url(b"c"))),
        line("responses", responses),
        line("input", {"input": [data_url(b"i")], "model": "any"}),
        line("two", chat(data_url(b"1"), data_url(b"2"))),
        line("none", chat()),
    ]
    (folder / "batch.jsonl").write_text(lines(*rows))

    # When they are read, then the image of each is found, and only if there is exactly one
    assert found(folder / "batch.jsonl") == [
        ("chat", b"c"),
        ("responses", b"r"),
        ("input", b"i"),
        ("two", ErrorCode.SOURCE_MISSING),
        ("none", ErrorCode.SOURCE_MISSING),
    ]


def test_images_in_the_manifest_are_decoded_and_limited(folder: Path) -> None:
    # Longer than a line of a manifest without images, and than a field of CSV
    large = bytes(2_000_000)
    urls = [
        data_url(large),
        data_url(b"p"),
        "DATA:;base64,cA==",
        "data:,a%20b",
        "data:image/png;base64,!",
        "data:image/png;base64",
        data_url(large + b"x"),
    ]
    expected = [
        ("image-0", large),
        ("image-1", b"p"),
        ("image-2", b"p"),
        ("image-3", b"a b"),
        ("image-4", ErrorCode.CORRUPT),
        ("image-5", ErrorCode.CORRUPT),
        ("image-6", ErrorCode.TOO_LARGE),
    ]
    (folder / "m.jsonl").write_text(lines(*({"url": url} for url in urls)))
    assert found(folder / "m.jsonl", max_bytes=len(large)) == expected
    (folder / "m.csv").write_text("url\n" + "".join(f'"{url}"\n' for url in urls))
    assert found(folder / "m.csv", max_bytes=len(large)) == expected


# ---- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("m.csv", "name,label\na,b\n", "m.csv has no column path or url"),
        ("m.csv", "", "m.csv has no column path or url"),
        ("m.csv", "path\n", "m.csv has no rows"),
        ("m.csv", 'path\n"a\n', "m.csv, line 2: it is not CSV"),
        ("m.csv", "path\na,b\n", "line 2: it has more cells"),
        ("m.jsonl", '{"path": "a"}\n{"path"\n', "m.jsonl, line 2: it is not a JSON object"),
        ("m.jsonl", "[1]\n", "line 1: it is not a JSON object"),
        ("m.jsonl", "\xff", "line 1: it is not UTF-8"),
        ("m.parquet", "no Parquet", "m.parquet cannot be read"),
        ("m.jsonl", f'{{"path": [{"[]," * 400_000}1]}}', "line 1: it has more than 100,000 values"),
        ("m.csv", "path\n" + 'a,"\n",' * 60_000, "line 50002: its row has more than .* 100,000 values"),
        (
            "m.jsonl",
            lines(*({"custom_id": f"{number % 70}", "path": "a"} for number in range(99))),
            "line 71: its custom_id '0' is that of line 1, too",
        ),
        ("m.csv", "custom_id,path\na,1\n,2\n,3\na,4\n", "line 5: its custom_id 'a' is that of line 2, too"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_before_an_image_is_read(
    folder: Path, name: str, text: str, reason: str
) -> None:
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(SourceError, match=reason):
        Sources([str(folder / name)])


def test_a_small_parquet_file_takes_little_memory(folder: Path) -> None:
    # Given a few hundred bytes that are 64 times the same 4 MiB: in a dictionary, and packed in one page
    text = "a" * (4 * 1024 * 1024)
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"url": once}), folder / "dictionary.parquet", write_statistics=False)
    options = {"use_dictionary": False, "write_statistics": False, "data_page_size": 2**31 - 1}
    packed = {"compression": "zstd", **options}
    pq.write_table(pa.table({"url": [text] * 64}), folder / "page.parquet", **packed)
    assert (folder / "page.parquet").stat().st_size < 20_000

    # When the first is read, then only a few rows are in memory at a time
    before = pa.total_allocated_bytes()

    def read() -> None:
        assert len(found(folder / "dictionary.parquet")) == 64

    assert peak_of(read) < 64 * 1024 * 1024
    assert pa.total_allocated_bytes() == before

    # And the second is refused before it is unpacked
    with pytest.raises(
        SourceError, match=r"page.parquet, column url: a page of [\d,]+ bytes unpacks to 268,"
    ):
        Sources([str(folder / "page.parquet")])

    # As is an encoding whose pages may claim any number of values
    delta = {"column_encoding": {"url": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}
    for version in ("1.0", "2.0"):
        pq.write_table(pa.table({"url": ["a"]}), folder / "delta.parquet", data_page_version=version, **delta)
        with pytest.raises(
            SourceError, match=r"delta.parquet, column url: it is encoded as DELTA_BYTE_ARRAY"
        ):
            Sources([str(folder / "delta.parquet")])

    # As is a column of which one row could have any size, and a file whose pages are damaged
    pq.write_table(pa.table({"path": [["a"]]}), folder / "nested.parquet")
    with pytest.raises(SourceError, match=r"nested.parquet, column path: it is nested: write text"):
        Sources([str(folder / "nested.parquet")])
    content = (folder / "dictionary.parquet").read_bytes()
    (folder / "damaged.parquet").write_bytes(content[:4] + b"\xff" * 20 + content[24:])
    with pytest.raises(SourceError, match=r"damaged.parquet cannot be read \(a page's header with a field"):
        Sources([str(folder / "damaged.parquet")])


def test_a_bad_row_costs_its_own_image_only(folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    rows = [
        {"path": "photos/a.png"},
        {},
        {"path": "photos/a.png", "url": "http://example.org/a.png"},
        {"path": 7},
        {"path": "../outside.png"},
        {"path": f"{folder.parent}/outside.png"},
        {"path": "link.png"},
        {"url": f"file://{folder.parent}/outside.png"},
        {"url": f"file://{folder}/photos/b.png"},
        {"url": "file://host/a.png"},
        {"url": "photos/a.png"},
        {"url": "zip://a.png::http://example.org/a.zip"},
        {"url": "no-such-scheme://a.png"},
        {"path": "photos"},
        {"path": "a\0b"},
        {"path": "photos/b.png", "custom_id": 7},
        {"path": "photos/b.png", "custom_id": "long" * 2000},
    ]
    (folder / "m.jsonl").write_text(lines(*rows))
    codes = [what for _, what in found(folder / "m.jsonl")]
    missing, forbidden = ErrorCode.SOURCE_MISSING, ErrorCode.SOURCE_FORBIDDEN
    assert codes == [
        b"a",
        *(missing,) * 3,
        *(forbidden,) * 4,
        b"b",
        *(forbidden,) * 3,
        missing,
        forbidden,
        missing,
        b"b",
        forbidden,
    ]
    (folder.parent / "outside.png").unlink()


def test_a_file_named_by_a_glob_or_on_stdin_is_no_manifest(folder: Path) -> None:
    (folder / "m.csv").write_text("path\nphotos/a.png\n")
    assert found(folder / "*.csv") == [(f"{folder}/m.csv", b"path\nphotos/a.png\n")]
    assert [image.name for image in Sources(["-"], stdin=[f"{folder}/m.csv"])] == [f"{folder}/m.csv"]


# ---- links --------------------------------------------------------------------------------------------


def test_links_are_read_at_the_same_time_and_stay_in_order(
    folder: Path, server: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given links to images, gone, broken and forbidden ones, and one that works the second time
    monkeypatch.setattr(manifests, "_PAUSES", (0.0, 0.01))
    host, asked = server
    paths = ["/a.png?key=word", *(f"/together{number}" for number in range(4))]
    paths += ["/gone", "/broken", "/once", "/away", "/last"]
    rows = [{"url": f"http://{host}{path}"} for path in paths]
    rows.insert(3, {"path": "photos/a.png"})
    rows.append({"url": "http://localhost/a.png"})
    (folder / "m.jsonl").write_text(lines(*rows))

    # When they are read, then each has its own outcome, in order, and its name has no query
    images = list(Sources([str(folder / "m.jsonl")], private_hosts=[host]))
    assert [outcome(image)[1] for image in images] == [
        b"/a.png",
        b"/together0",
        b"/together1",
        b"a",
        b"/together2",
        b"/together3",
        ErrorCode.SOURCE_MISSING,
        ErrorCode.SOURCE_MISSING,
        b"/once",
        ErrorCode.SOURCE_FORBIDDEN,
        b"/last",
        ErrorCode.SOURCE_FORBIDDEN,
    ]
    assert images[0].name == f"http://{host}/a.png"
    assert [str(images[place].error) for place in (6, 7)] == [
        "the server answered 404",
        "the server answered 503",
    ]
    assert (asked["/gone"], asked["/broken"], asked["/once"]) == (1, 2, 2)


def test_rows_are_skipped_without_reading_their_images(
    folder: Path, server: tuple[str, dict[str, int]]
) -> None:
    host, asked = server
    (folder / "m.jsonl").write_text(lines(*({"url": f"http://{host}/{number}"} for number in range(10))))
    manifest = Manifest(str(folder / "m.jsonl"), "m.jsonl", 100, private_hosts=[host])
    assert [image.data for image in manifest.images(skip=7)] == [b"/7", b"/8", b"/9"]
    assert set(asked) == {"/7", "/8", "/9"}


# ---- on a server --------------------------------------------------------------------------------------


def test_an_uploaded_manifest_reaches_only_the_roots(folder: Path, bucket: MemoryFileSystem) -> None:
    # Given a root on the disk and one in a store
    bucket.pipe_file("/bucket/photos/a.png", b"in the bucket")
    bucket.pipe_file("/bucket/other/a.png", b"secret")
    (folder / "other.png").write_bytes(b"secret")
    (folder / "photos" / "link.png").symlink_to(folder / "other.png")
    rows = [
        {"path": f"{folder}/photos/a.png"},
        {"path": "photos/a.png"},
        {"path": f"{folder}/other.png"},
        {"path": f"{folder}/photos/../other.png"},
        {"path": f"{folder}/photos/link.png"},
        {"url": f"file://{folder}/photos/b.png"},
        {"url": f"file://{folder}/other.png"},
        {"url": "memory://bucket/photos/a.png"},
        {"url": "memory://bucket/other/a.png"},
        {"url": "memory://bucket/photos/../other/a.png"},
        {"url": data_url(b"d")},
    ]
    (folder / "m.jsonl").write_text(lines(*rows))

    # When the manifest is read
    roots = Roots([str(folder / "photos"), "memory://bucket/photos"])
    images = list(Manifest(str(folder / "m.jsonl"), "m.jsonl", 100, roots=roots).images())

    # Then only what is below a root is, and a reference to it can be stored
    forbidden = ErrorCode.SOURCE_FORBIDDEN
    assert [outcome(image)[1] for image in images] == [
        b"a",
        *(forbidden,) * 4,
        b"b",
        forbidden,
        b"in the bucket",
        *(forbidden,) * 2,
        b"d",
    ]
    read = [image for image in images if image.data is not None]
    assert [image.url and roots.locate(image.url) for image in read] == [
        f"{folder}/photos/a.png",
        f"{folder}/photos/b.png",
        "memory://bucket/photos/a.png",
        None,
    ]


def test_without_roots_an_uploaded_manifest_reaches_no_file(folder: Path) -> None:
    (folder / "m.jsonl").write_text(lines({"path": f"{folder}/photos/a.png"}, {"url": "memory://b/a.png"}))
    manifest = Manifest(str(folder / "m.jsonl"), "m.jsonl", 9, roots=Roots(()))
    assert [outcome(image)[1] for image in manifest.images()] == [ErrorCode.SOURCE_FORBIDDEN] * 2


def test_repeats_are_counted() -> None:
    repeats = Repeats()
    for number in range(10_000):
        repeats.add(f"{number % 9_000}".encode())
    assert repeats.count() == 1_000
    assert repeats.hashes() == {hash(f"{number}".encode()) for number in range(1_000)}
