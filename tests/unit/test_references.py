"""A reference leads to the bytes that were submitted, below an allowed root, or says why not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import ErrorCode, ImageError, SettingsError, Unavailable
from jobs.network.objects import local_path, shown_url
from jobs.network.references import Reference, Roots
from tests.memory import peak_of
from tests.web import web_server

LIMIT = 1_000_000


def reference(url: str | Path, data: bytes) -> Reference:
    return Reference(str(url), hashlib.sha256(data).hexdigest(), len(data))


def put(path: Path, data: bytes = b"pixels") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def code_of(action, *arguments, **options) -> ErrorCode:
    with pytest.raises(ImageError) as caught:
        action(*arguments, **options)
    return caught.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an allowed folder, next to one whose name begins with the same letters."""
    put(tmp_path / "data2" / "a.png")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# ---- below a folder -----------------------------------------------------------------------------------


def test_what_lies_below_a_root_is_read_and_nothing_else(folder: Path) -> None:
    # Given a root, and references to files below and beside it, all with the right SHA-256
    roots = Roots([str(folder)])
    put(folder / "a.png")
    put(folder / "deep" / "b.png")
    put(folder.parent / "c.png")

    # When they are read, Then only those below the root can be read
    for name in ("a.png", "deep/b.png", "deep/../a.png", "./a.png"):
        assert roots.read(reference(f"{folder}/{name}", b"pixels"), max_bytes=LIMIT) == b"pixels"

    # And paths that only resemble the root, or lead above it, are forbidden
    for path in (f"{folder}2/a.png", f"{folder}/../c.png", f"{folder}/../data2/a.png", "/c.png", "/"):
        assert code_of(roots.read, reference(path, b"pixels"), max_bytes=LIMIT) == ErrorCode.SOURCE_FORBIDDEN


def test_a_reference_says_where_a_path_leads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "deep" / "a.png")
    (folder / "link.png").symlink_to("deep/a.png")
    (folder / "linked").symlink_to("deep")
    monkeypatch.chdir(folder / "deep")
    roots = Roots([str(folder)])
    for path in ("a.png", "../deep/a.png", "../link.png", "../linked/a.png", f"{folder}/link.png"):
        assert roots.locate(path) == f"{folder}/deep/a.png"


def test_a_root_may_be_mounted_elsewhere_on_another_machine(tmp_path: Path) -> None:
    # Given a producer's machine on which the root is a symlink to a disk
    put(tmp_path / "disk1" / "photos" / "a.png")
    root = tmp_path / "data"
    root.symlink_to("disk1")
    roots = Roots([str(root)])
    submitted = reference(roots.locate(str(tmp_path / "disk1" / "photos" / "a.png")), b"pixels")

    # When the root is a symlink to another disk, as on a worker's machine
    put(tmp_path / "disk2" / "photos" / "a.png")
    root.unlink()
    root.symlink_to("disk2")
    (tmp_path / "disk1" / "photos" / "a.png").unlink()

    # Then the reference leads to that disk
    assert submitted.url == f"{root}/photos/a.png"
    assert roots.read(submitted, max_bytes=LIMIT) == b"pixels"


@given(steps=st.lists(st.sampled_from(["a", "b.png", "..", ".", "", "in", "out", "up", "data2", "secret"])))
def test_no_way_through_the_tree_leads_out_of_the_root(
    tree: Path,
    steps: list[str],
) -> None:
    # Given any path through folders and symlinks, some of which lead out, and the SHA-256 of a secret there
    roots = Roots([f"{tree}/data"])
    path = "/".join([f"{tree}/data", *steps])

    # When it is read, Then the secret is never returned
    with pytest.raises(ImageError):
        roots.read(reference(path, b"secret"), max_bytes=LIMIT)

    # And whatever can be referenced is below the root
    try:
        located = roots.locate(path)
    except ImageError:
        return
    assert os.path.realpath(located) == located == os.path.realpath(path)
    assert located.startswith(f"{tree}/data/")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree").resolve()
    put(tree / "secret", b"secret")
    put(tree / "data2" / "b.png", b"secret")
    put(tree / "data" / "b.png", b"fine")
    put(tree / "data" / "a" / "b.png", b"fine")
    (tree / "data" / "in").symlink_to("a")
    (tree / "data" / "out").symlink_to("../data2")
    (tree / "data" / "up").symlink_to("..")
    (tree / "data" / "a" / "secret").symlink_to(tree / "secret")
    return tree


def test_a_file_url_is_a_path(folder: Path) -> None:
    # Given a root and files named by file URLs
    put(folder / "a b.png")
    roots = Roots([folder.as_uri()])
    assert roots.locate((folder / "a b.png").as_uri()) == f"{folder}/a b.png"
    assert roots.locate(f"LOCAL://localhost{folder}/a b.png") == f"{folder}/a b.png"

    # Then encoded dots do not lead out of the root
    for way in ("..", "%2e%2e", "%2E."):
        assert code_of(roots.locate, f"file://{folder}/{way}/data2/a.png") == ErrorCode.SOURCE_FORBIDDEN
    assert code_of(roots.locate, f"file://{folder}/%00.png") == ErrorCode.SOURCE_FORBIDDEN


def test_a_file_url_of_another_machine_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="'server'"):
        local_path("file://server/photos")
    with pytest.raises(SettingsError, match=r"LABELMILL_REFERENCE_ROOTS.*server"):
        Roots(["file://server/photos"])
    assert code_of(Roots([str(folder)]).locate, f"file://server{folder}/a.png") == ErrorCode.SOURCE_FORBIDDEN


# ---- files that have changed --------------------------------------------------------------------------


@pytest.mark.parametrize("now", [b"pixelt", b"pixel", b"pixels!", b"", b"x" * 5_000_000])
def test_a_file_with_other_bytes_is_changed(folder: Path, now: bytes) -> None:
    submitted = reference(put(folder / "a.png", b"pixels"), b"pixels")
    put(folder / "a.png", now)
    roots = Roots([str(folder)])
    assert code_of(roots.read, submitted, max_bytes=LIMIT) == ErrorCode.SOURCE_CHANGED


def test_of_a_file_that_grew_nothing_is_read(folder: Path) -> None:
    # Given a file that has grown to 100 MB
    submitted = reference(put(folder / "a.png"), b"pixels")
    os.truncate(folder / "a.png", 100_000_000)

    # When it is read, Then its bytes were never in memory
    def read() -> None:
        assert code_of(Roots([str(folder)]).read, submitted, max_bytes=10**9) == ErrorCode.SOURCE_CHANGED

    assert peak_of(read) < 100_000


def test_a_file_at_the_limit_is_read_and_one_over_it_is_not_opened(folder: Path) -> None:
    roots = Roots([str(folder)])
    put(folder / "a.png", b"0123456789")
    submitted = reference(folder / "a.png", b"0123456789")
    assert roots.read(submitted, max_bytes=10) == b"0123456789"
    (folder / "a.png").unlink()
    assert code_of(roots.read, submitted, max_bytes=9) == ErrorCode.TOO_LARGE


def test_a_root_that_is_not_mounted_is_no_fault_of_the_files(folder: Path) -> None:
    # Given a worker on which the root is not mounted
    submitted = reference(put(folder / "a.png"), b"pixels")
    roots = Roots([str(folder)])
    folder.rename(folder.with_name("elsewhere"))

    # When it reads, Then the error is Unavailable: another worker, or a later attempt, may succeed
    with pytest.raises(Unavailable, match="mounted"):
        roots.read(submitted, max_bytes=LIMIT)
    folder.with_name("elsewhere").rename(folder)
    assert roots.read(submitted, max_bytes=LIMIT) == b"pixels"


# ---- below a URL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/photos/a.png",
        "S3://bucket/photos/a.png",
        "s3://bucket/photos/deep/a b.png",
        "s3://bucket/photos//a.png",
        "s3://bucket/photos/a..png",
        "s3://bucket/photos/100%.png",
        "s3://bucket/photos/what?.png",
        "https://Example.org/photos/a.png",
        "https://example.org/photos/a%20b.png",
    ],
)
def test_a_url_below_a_root_is_allowed(url: str) -> None:
    roots = Roots(["s3://bucket/photos/", "https://example.ORG/photos"])
    found = roots.locate(url)
    assert found.lower() == url.lower()
    assert found.startswith(("s3://bucket/photos/", "https://example.org/photos/"))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/photos",
        "s3://bucket/photos/",
        "s3://bucket/photos2/a.png",
        "s3://bucket/a.png",
        "s3://bucket2/photos/a.png",
        "s3://Bucket/photos/a.png",
        "gs://bucket/photos/a.png",
        "s3a://bucket/photos/a.png",
        "s3://bucket/photos/./a.png",
        "s3://bucket/photos/..\\a.png",
        "s3://bucket/photos/..%5ca.png",
        "s3://bucket/photos/a\n.png",
        "s3://bucket/photos/::file:///etc/passwd",
        "zip://a.png::s3://bucket/photos/a.zip",
        "https://example.org/photos/a.png?file=../b.png",
        "https://example.org/photos/a.png#b",
        "https://example.org?/photos/a.png",
        "https://example.org@elsewhere.org/photos/a.png",
        "https://elsewhere.org\\@example.org/photos/a.png",
        "https://example.org:8080/photos/a.png",
        "http://example.org/photos/a.png",
        "sftp://anna:secret@host/photos/a.png",
    ],
)
def test_a_url_that_is_not_below_a_root_or_may_lead_elsewhere_is_forbidden(url: str) -> None:
    roots = Roots(["s3://bucket/photos/", "https://example.org/photos", "sftp://host/", "sftp://anna@host/"])
    assert code_of(roots.locate, url) == ErrorCode.SOURCE_FORBIDDEN
    assert code_of(roots.read, reference(url, b""), max_bytes=LIMIT) == ErrorCode.SOURCE_FORBIDDEN


def _encoded(character: str, times: int) -> str:
    encoded = "".join(f"%{byte:02x}" for byte in character.encode()) if times else character
    for _ in range(times - 1):
        encoded = quote(encoded)
    return encoded


ENCODED_DOT = st.integers(0, 4).map(lambda times: _encoded(".", times))
ENCODED_SLASH = st.integers(1, 4).map(lambda times: _encoded("/", times)) | st.just("/")


@given(ENCODED_SLASH, ENCODED_DOT, ENCODED_DOT, ENCODED_SLASH, st.text("ab/%", max_size=5))
def test_no_encoding_of_a_step_up_is_allowed(before, one, two, after, rest) -> None:
    url = f"s3://bucket/photos/a{before}{one}{two}{after}{rest}"
    assert code_of(Roots(["s3://bucket/photos"]).locate, url) == ErrorCode.SOURCE_FORBIDDEN


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.text("/.\\%2eE5cCfF?#@:", max_size=20))
def test_what_is_allowed_begins_with_its_root(host: str, rest: str) -> None:
    for url in (f"s3://bucket/photos/{rest}", f"s3://bucket{rest}", f"s3://{host}/photos/{rest}"):
        try:
            located = Roots(["s3://bucket/photos"]).locate(url)
        except ImageError:
            continue
        assert located == url
        assert url.startswith("s3://bucket/photos/")


@pytest.mark.parametrize(
    ("root", "why"),
    [
        ("s3://", "no path"),
        ("s3:///", "no path"),
        ("s3://bucket/../other", "as a folder"),
        ("zip://::s3://bucket", "chains"),
        ("https://host/photos?x", "query"),
        ("sftp://anna:sesame@host/", "password"),
    ],
)
def test_a_root_that_could_mean_anything_is_refused(root: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"LABELMILL_REFERENCE_ROOTS: .*{why}") as refused:
        Roots([root])
    assert "sesame" not in str(refused.value)


def test_the_root_folder_and_a_whole_bucket_are_roots(tmp_path: Path) -> None:
    roots = Roots(["/", "s3://bucket"])
    assert roots.locate(str(put(tmp_path / "a.png"))) == f"{tmp_path}/a.png"
    assert roots.locate("s3://bucket/a.png") == "s3://bucket/a.png"
    assert code_of(roots.locate, "s3://bucket2/a.png") == ErrorCode.SOURCE_FORBIDDEN


def test_a_url_is_shown_without_what_is_secret() -> None:
    assert shown_url("sftp://anna:sesame@host/a:b@c.png") == "sftp://anna@host/a:b@c.png"
    assert shown_url("https://host/a.png?signature=sesame#sesame") == "https://host/a.png"
    assert shown_url("https://host?sesame") == "https://host"
    assert shown_url("s3://bucket/what?#.png") == "s3://bucket/what?#.png"


# ---- objects that have changed ------------------------------------------------------------------------


ROOTS = Roots(["memory://bucket/photos", "odd://bucket/"])


def test_an_object_is_read(bucket: MemoryFileSystem) -> None:
    bucket.pipe_file("/bucket/photos/a.png", b"pixels")
    submitted = reference("memory://bucket/photos/a.png", b"pixels")
    assert ROOTS.read(submitted, max_bytes=6) == b"pixels"
    assert code_of(ROOTS.read, submitted, max_bytes=5) == ErrorCode.TOO_LARGE


class OddFileSystem(MemoryFileSystem):
    """An object store that raises a given error, and counts the requested bytes."""

    protocol = "odd"
    raises: BaseException | None = None
    asked: int = 0

    def _open(self, *_arguments, **_options):
        if self.raises is not None:
            raise self.raises
        return self

    def read(self, size: int) -> bytes:
        OddFileSystem.asked += size
        return b"x" * min(size, 3)  # endless, in small parts

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[OddFileSystem]]:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    monkeypatch.setattr(OddFileSystem, "raises", None)
    monkeypatch.setattr(OddFileSystem, "asked", 0)
    return OddFileSystem


class Answer(Exception):
    """An HTTP package's error, which is not an OSError."""

    def __init__(self, status: int) -> None:
        super().__init__(f"https://anna:sesame@host answered {status}")
        self.status = status


def because(error: Exception, cause: Exception) -> Exception:
    """Return the error that `raise error from cause` raises."""
    error.__cause__ = cause
    return error


def test_of_an_object_that_grew_one_byte_more_is_read_and_no_other(odd: type[OddFileSystem]) -> None:
    # Given an endless object, in parts of three bytes, in the place of one of ten bytes
    submitted = reference("odd://bucket/a.png", b"x" * 10)

    # When it is read, Then it is read only up to the eleventh byte
    assert code_of(ROOTS.read, submitted, max_bytes=LIMIT) == ErrorCode.SOURCE_CHANGED
    assert odd.asked == 11 + 8 + 5 + 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(), ErrorCode.SOURCE_MISSING),
        (NotADirectoryError(), ErrorCode.SOURCE_MISSING),
        (PermissionError(), ErrorCode.SOURCE_MISSING),
        (Answer(404), ErrorCode.SOURCE_MISSING),
        (Answer(403), ErrorCode.SOURCE_MISSING),
        (because(FileNotFoundError(), Answer(404)), ErrorCode.SOURCE_MISSING),
        (because(FileNotFoundError(), KeyError("a.png")), ErrorCode.SOURCE_MISSING),
        (IsADirectoryError(), ErrorCode.SOURCE_FORBIDDEN),
    ],
    ids=repr,
)
def test_what_is_the_objects_own_fault_is_its_error(odd, monkeypatch, error, code) -> None:
    monkeypatch.setattr(odd, "raises", error)
    assert code_of(ROOTS.read, reference("odd://bucket/a.png", b""), max_bytes=LIMIT) == code


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        Answer(503),
        RuntimeError("sesame"),
        because(FileNotFoundError(), Answer(503)),
        because(FileNotFoundError(), ConnectionRefusedError()),
    ],
    ids=repr,
)
def test_what_is_the_networks_fault_is_tried_again(odd, monkeypatch, error) -> None:
    monkeypatch.setattr(odd, "raises", error)
    with pytest.raises(Unavailable, match=r"odd://bucket/a\.png") as unavailable:
        ROOTS.read(reference("odd://bucket/a.png", b""), max_bytes=LIMIT)
    assert "sesame" not in str(unavailable.value)


@pytest.mark.parametrize(
    "alarm", [SoftTimeLimitExceeded(), ImageError(ErrorCode.TIMEOUT), MemoryError()], ids=repr
)
def test_an_alarm_that_rings_meanwhile_is_not_the_networks(odd, monkeypatch, alarm) -> None:
    monkeypatch.setattr(odd, "raises", alarm)
    with pytest.raises(type(alarm)) as raised:
        ROOTS.read(reference("odd://bucket/a.png", b""), max_bytes=LIMIT)
    assert raised.value is alarm


def test_a_worker_without_the_protocols_package_leaves_it_to_others() -> None:
    with pytest.raises(Unavailable, match="unheard-of"):
        Roots(["unheard-of://x"]).read(reference("unheard-of://x/a.png", b""), max_bytes=LIMIT)


# ---- on the web ---------------------------------------------------------------------------------------


def test_a_web_image_is_not_read_from_a_private_address_to_which_it_redirects() -> None:
    with web_server() as outer, web_server() as inner:
        # Given a root whose server redirects to another port of this machine
        root = f"http://{outer.host}/to"
        submitted = reference(f"{root}/http://{inner.host}/a.png", b"pixels")

        # When the image is read, Then it is forbidden, and the other port is not asked
        assert code_of(Roots([root]).read, submitted, max_bytes=LIMIT) == ErrorCode.SOURCE_FORBIDDEN
        assert (len(outer.asked), inner.asked) == (1, [])

        # And a listed host is asked
        assert Roots([root], [inner.host]).read(submitted, max_bytes=LIMIT) == b"pixels"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("status/404", ErrorCode.SOURCE_MISSING),
        ("status/410", ErrorCode.SOURCE_MISSING),
        ("status/401", ErrorCode.SOURCE_MISSING),
        ("status/403", ErrorCode.SOURCE_MISSING),
        ("endless", ErrorCode.SOURCE_CHANGED),
        ("status/204", ErrorCode.SOURCE_CHANGED),
        ("status/400", None),
        ("status/429", None),
        ("status/503", None),
        ("short", None),
        ("circle", None),
    ],
)
def test_a_web_image_has_an_error_or_is_tried_again(path: str, code: ErrorCode | None) -> None:
    with web_server() as server:
        roots = Roots([f"http://{server.host}"])
        assert roots.read(reference(f"http://{server.host}/to//a.png", b"pixels"), max_bytes=6) == b"pixels"
        submitted = reference(f"http://{server.host}/{path}", b"pixels")
        if code is None:
            with pytest.raises(Unavailable, match=f"http://{server.host}/{path}"):
                roots.read(submitted, max_bytes=LIMIT)
        else:
            assert code_of(roots.read, submitted, max_bytes=LIMIT) == code
    with pytest.raises(Unavailable, match="cannot be reached"):
        roots.read(submitted, max_bytes=LIMIT)
