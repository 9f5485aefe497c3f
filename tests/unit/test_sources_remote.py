"""URLs as sources follow the same rules as paths, for single objects and for prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.errors import ErrorCode, SourceError, Unavailable
from jobs.limits import ArchiveLimits
from jobs.network.objects import is_chained, open_remote
from producer.sources import SourceImage, Sources
from producer.sources.image import Reading
from producer.sources.listing import list_folder
from producer.sources.remote import read_remote
from tests.sources import outcome


def put(bucket: MemoryFileSystem, *names: str, data: bytes = b"x") -> None:
    for name in names:
        bucket.pipe_file(f"/bucket/{name}", data)


def names(sources: Sources) -> list[str]:
    return [image.name for image in sources]


@pytest.fixture
def opened(bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the objects that are opened."""
    paths: list[str] = []
    open_it = bucket.open

    def watched(path, *arguments, **options):
        paths.append(path)
        return open_it(path, *arguments, **options)

    monkeypatch.setattr(bucket, "open", watched)
    return paths


def test_one_object_is_taken_whatever_it_is_called(bucket: MemoryFileSystem) -> None:
    put(bucket, "notes.txt", data=b"notes")
    [image] = Sources(["memory://bucket/notes.txt"])
    assert image == SourceImage("memory://bucket/notes.txt", b"notes", None, "memory://bucket/notes.txt")


@pytest.mark.parametrize("named", ["memory://bucket/photos", "memory://bucket/photos/"])
def test_all_below_a_prefix_is_read_folder_by_folder_in_name_order(
    bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    # Given objects below a prefix, and objects beside it
    put(bucket, "photos/b.png", "photos/a/2.png", "photos/a/10.png", "photos/c/d/e.png", "photos/a.png")
    put(bucket, "photos2/f.png", "g.png")

    # And a record of the folders that are listed
    listed = []
    ls = bucket.ls

    def watched(path, **options):
        listed.append(path)
        return ls(path, **options)

    monkeypatch.setattr(bucket, "ls", watched)

    # When the prefix is read
    images = list(Sources([named]))

    # Then the order is that of a folder, each image has a URL, and each folder was listed once
    expected = ["a/10.png", "a/2.png", "a.png", "b.png", "c/d/e.png"]
    assert [image.name for image in images] == [f"memory://bucket/photos/{name}" for name in expected]
    assert [image.url for image in images] == [image.name for image in images]
    assert listed == [f"/bucket/photos{below}" for below in ("", "/a", "/c", "/c/d")]


class PagingServer:
    """A store that lists these pages of names, and then, if there are more, refuses."""

    def __init__(self, pages: list[list[str]], *, has_more: bool = False) -> None:
        self.pages, self.has_more = pages, has_more

    def split_path(self, path: str) -> tuple[str, str, None]:
        return *path.split("/", 1), None  # type: ignore[return-value]

    def call_s3(self, _method: str, *, ContinuationToken: int = 0, **_: str) -> dict[str, object]:  # noqa: N803
        if ContinuationToken == len(self.pages):
            raise PermissionError("The provided token has expired")
        objects = [{"Key": f"photos/{name}", "Size": 1} for name in self.pages[ContinuationToken]]
        following = ContinuationToken + 1
        more = {
            "IsTruncated": self.has_more or following < len(self.pages),
            "NextContinuationToken": following,
        }
        return {"Contents": objects, **more}


@pytest.mark.parametrize(
    ("pages", "order"),
    [
        ([["b", "a"], ["d", "c"]], "abcd"),  # as directory buckets of S3 list
        ([["a", "b"], [], ["d"], ["c"]], "abdc"),  # what is read already stays first
        ([["c", "d"], ["b"], ["a"]], "cdab"),
    ],
)
def test_a_server_may_list_in_any_order(pages: list[list[str]], order: str) -> None:
    assert [entry.name for entry in list_folder(PagingServer(pages), "bucket/photos")] == list(order)


def test_a_listing_that_fails_half_way_is_no_error_of_the_folder() -> None:
    entries = list_folder(PagingServer([["a.png"]], has_more=True), "bucket/photos")
    assert next(entries).name == "a.png"
    with pytest.raises(Unavailable, match="token has expired"):
        next(entries)


def test_images_that_are_skipped_are_not_read(bucket: MemoryFileSystem, opened: list[str]) -> None:
    # Given images below a prefix
    put(bucket, "photos/a/1.png", "photos/a/2.png", "photos/b.png", "photos/c.png", "photos/c.txt")
    opened.clear()

    # When the first three are skipped, then only the last one is read
    [image] = read_remote("memory://bucket/photos/", Reading(10, ArchiveLimits()), skip=3)
    assert image.name == "memory://bucket/photos/c.png"
    assert opened == ["/bucket/photos/c.png"]


def test_below_a_prefix_names_rule_as_in_a_folder(bucket: MemoryFileSystem) -> None:
    put(bucket, "photos/a.png", "photos/noextension", "photos/scan.tif")
    put(bucket, "photos/notes.txt", "photos/archive.zip", "photos/deep/more.txt")
    put(bucket, "photos/.hidden.png", "photos/.git/b.png", "photos/__MACOSX/c.png")
    sources = Sources(["memory://bucket/photos/"])
    assert names(sources) == [
        f"memory://bucket/photos/{name}" for name in ("a.png", "noextension", "scan.tif")
    ]
    assert sources.skipped == 3


def test_an_object_at_the_limit_is_read_and_one_over_it_is_not_opened(
    bucket: MemoryFileSystem, opened: list[str]
) -> None:
    # Given two objects in a folder, the larger of which is also named by itself
    put(bucket, "photos/at.png", data=b"x" * 10)
    put(bucket, "photos/over.png", data=b"x" * 11)
    opened.clear()

    # When they are read
    sources = Sources(["memory://bucket/photos", "memory://bucket/photos/over.png"], max_bytes=10)

    # Then one is an image, and the listing's size is enough to refuse the other without opening it
    assert [outcome(image)[1] for image in sources] == [
        b"x" * 10,
        ErrorCode.TOO_LARGE,
        ErrorCode.TOO_LARGE,
    ]
    assert opened == ["/bucket/photos/at.png", "/bucket/photos/over.png"]


def test_what_vanishes_stops_only_itself(bucket: MemoryFileSystem) -> None:
    put(bucket, "photos/a.png", "photos/b.png", "photos/c/1.png", "photos/d.png")
    images = iter(Sources(["memory://bucket/photos"]))
    first = next(images)
    bucket.rm("/bucket/photos/b.png")
    bucket.rm("/bucket/photos/c", recursive=True)
    assert [outcome(image) for image in (first, *images)] == [
        ("memory://bucket/photos/a.png", b"x"),
        ("memory://bucket/photos/b.png", ErrorCode.SOURCE_MISSING),
        ("memory://bucket/photos/c", ErrorCode.SOURCE_MISSING),
        ("memory://bucket/photos/d.png", b"x"),
    ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/absent.png", "cannot find memory://bucket/absent.png: check the spelling"),
        ("memory://bucket/absent/", "cannot find"),
        ("memory://bucket/a.png/", "not a folder that can be listed: name the files"),
        ("unheard-of://bucket/a.png", "cannot read unheard-of://.*not known.*install the package"),
        ("gs://bucket/a.png", "cannot read gs://bucket/a.png: install Labelmill with the extra 'gcs'"),
        ("memory://bucket/photos.zip", "is an archive, which is read from a disk only: fetch it"),
        ("memory://bucket/photos.tar.gz", "is an archive"),
        ("http://host/photos.zip?sig=1", "is an archive"),
        ("https://host/photos.tgz#2", "is an archive"),
        ("zip://a.png::memory://bucket/photos.zip", "chains"),
        ("file://server/photos/", "host 'server'"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_at_once(
    bucket: MemoryFileSystem, url: str, message: str
) -> None:
    put(bucket, "a.png", "photos.zip", "photos.tar.gz")
    with pytest.raises(SourceError, match=message):
        Sources([url])


def test_a_server_that_does_not_answer_is_no_fault_of_the_source() -> None:
    with pytest.raises(Unavailable, match="ConnectionRefusedError") as unavailable:
        Sources(["ftp://anna:sesame@127.0.0.1:1/photos"])
    assert "sesame" not in str(unavailable.value)


def test_a_file_url_is_the_path_it_means(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"a")
    (folder / "deep" / "b.png").write_bytes(b"b")
    (folder / "out.png").symlink_to("/etc/passwd")
    assert [outcome(image) for image in Sources([folder.as_uri()])] == [
        (f"{folder}/a.png", b"a"),
        (f"{folder}/deep/b.png", b"b"),
        (f"{folder}/out.png", ErrorCode.SOURCE_FORBIDDEN),
    ]
    assert (
        names(Sources([(folder / "a.png").as_uri(), f"file://{tmp_path}/*/a.png"])) == [f"{folder}/a.png"] * 2
    )


def test_stdin_may_name_urls_and_what_is_wrong_with_one_stops_only_itself(
    bucket: MemoryFileSystem, tmp_path: Path
) -> None:
    put(bucket, "a.png", "photos/b.png")
    (tmp_path / "c.png").write_bytes(b"c")
    lines = [
        "memory://bucket/a.png\n",
        "memory://bucket/absent.png\n",
        "unheard-of://bucket/a.png\n",
        "memory://bucket/photos/\n",
        (tmp_path / "c.png").as_uri() + "\n",
        (tmp_path / "d.png").as_uri() + "\n",
        "file://server/e.png\n",
    ]
    assert [outcome(image) for image in Sources(["-"], stdin=lines)] == [
        ("memory://bucket/a.png", b"x"),
        ("memory://bucket/absent.png", ErrorCode.SOURCE_MISSING),
        ("unheard-of://bucket/a.png", ErrorCode.SOURCE_MISSING),
        ("memory://bucket/photos/b.png", b"x"),
        (f"{tmp_path}/c.png", b"c"),
        (f"{tmp_path}/d.png", ErrorCode.SOURCE_MISSING),
        ("file://server/e.png", ErrorCode.SOURCE_MISSING),
    ]


def test_the_colons_of_an_ipv6_address_chain_nothing() -> None:
    # Given URLs with an IPv6 host, some chained and some not
    assert not is_chained("http://[::1]:8000/x.png")
    assert not is_chained("https://user:word@[2001:db8::1]/x.png")
    assert is_chained("zip://a.png::http://[::1]/photos.zip")
    assert is_chained("http://[::1]/photos.zip::zip://a.png")
    # When one is opened, then its whole address is used
    filesystem, path = open_remote("memory://[::1]:8000/x.png")
    assert isinstance(filesystem, MemoryFileSystem)
    assert path.lstrip("/") == "[::1]:8000/x.png"
