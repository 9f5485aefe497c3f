"""TAR archives as sources: one forward pass in constant memory, whatever the headers say.

What holds for ZIP archives as well is here, too.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, SourceError
from jobs.limits import ArchiveLimits
from producer.sources import Sources
from tests.memory import peak_of
from tests.sources import outcomes

pytestmark = pytest.mark.usefixtures("here")

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


def pack(path: str, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:  # noqa: A002
    """Write a TAR file, gzipped if its name ends in gz, or a ZIP file if it ends in zip."""
    if path.endswith("zip"):
        with zipfile.ZipFile(path, "w") as zipped:
            for name, data in members.items():
                zipped.writestr(name, data)
        return
    with tarfile.open(path, "w:gz" if path.endswith("gz") else "w", format=format) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(data))


def header(
    name: str,
    size: int = 0,
    type: bytes = tarfile.REGTYPE,  # noqa: A002
    format: int = tarfile.GNU_FORMAT,  # noqa: A002
    link: str = "",
) -> bytes:
    """Return a member's header with any size."""
    member = tarfile.TarInfo(name)
    member.type = type
    member.size = size
    member.linkname = link
    return member.tobuf(format)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(records: bytes, type: bytes = tarfile.XHDTYPE) -> bytes:  # noqa: A002
    """Return an extended header with these records."""
    return header("pax", len(records), type) + padded(records)


def record(keyword: str, value: str) -> bytes:
    rest = f" {keyword}={value}\n".encode()
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size += 1
    return str(size).encode() + rest


GOOD = header("good.png", 4) + padded(b"good")

# --- what is read


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("path", ["photos.tar", "photos.tar.gz", "photos.tgz", "photos.zip"])
def test_members_come_in_the_archives_order_under_its_name(path: str, format: int) -> None:  # noqa: A002
    # Given members with short and long names, one of them empty, and one of several blocks
    long = "x" * 90 + "/" + "y" * 60 + ".png"
    pack(path, {"b.png": b"1", "a/c.png": b"2" * 1000, "./d.png": b"", long: b"3" * 512}, format)
    expected = [
        (f"{path}/b.png", b"1"),
        (f"{path}/a/c.png", b"2" * 1000),
        (f"{path}/./d.png", b""),
        (f"{path}/{long}", b"3" * 512),
    ]
    sources = Sources([f"./{path}"])
    assert outcomes(sources) == expected
    assert outcomes(sources) == expected  # a second time
    assert sorted(path.name for path in Path().iterdir()) == [path]  # nothing is extracted


def test_an_archive_is_known_by_its_extension_or_by_what_it_holds() -> None:
    names = {
        "plain.TAR": "tar",
        "zipped.TGZ": "tgz",
        "plain.ZIP": "zip",
        "tar.bin": "tar",
        "tgz.bin": "tgz",
        "zip.bin": "zip",
        "really.tar": "tgz",
    }
    for name, kind in names.items():
        pack(f"packed.{kind}", {"a.png": name.encode()})
        Path(f"packed.{kind}").rename(name)
    assert outcomes(Sources(list(names))) == [(f"{name}/a.png", name.encode()) for name in names]


def test_an_old_archive_without_a_magic_number_is_read_by_its_name() -> None:
    head = bytearray(header("a.png", 1))
    head[257:265] = bytes(8)
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:]) + 8 * 32)
    Path("old.tar").write_bytes(bytes(head) + padded(b"1") + END)
    assert outcomes(Sources(["old.tar"])) == [("old.tar/a.png", b"1")]


@pytest.mark.parametrize("name", ["empty.tar", "empty.tar.gz", "empty.zip"])
def test_an_archive_of_nothing_holds_nothing(name: str) -> None:
    pack(name, {})
    assert outcomes(Sources([name])) == []


@pytest.mark.parametrize("path", ["photos.tar", "photos.zip"])
def test_members_are_chosen_as_a_folders_files_are(path: str) -> None:
    names = ["a/", "a/1.png", "b.txt", ".c.png", ".git/d.png", "__MACOSX/._1.png", "e", "f.TIFF", "g.json"]
    pack(path, dict.fromkeys(names, b""))
    sources = Sources([path])
    assert [image.name for image in sources] == [f"{path}/{name}" for name in ("a/1.png", "e", "f.TIFF")]
    assert sources.skipped == 2


# --- what is forbidden, or too large


def sparse_old() -> bytes:
    """Return a sparse member in GNU tar's oldest format, with a map in blocks of its own."""
    head = bytearray(header("a.png", 512, tarfile.GNUTYPE_SPARSE))
    head[482] = 1
    head[483:495] = b"%011o\0" % 10**9
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:]) + 8 * 32)
    extension = bytearray(BLOCK)
    extension[:24] = b"%011o\0%011o\0" % (512, 512)
    return bytes(head) + bytes(extension) + bytes(512)


SPARSE = {
    "old": sparse_old(),
    "0.0": pax(
        record("GNU.sparse.size", "1000000000")
        + record("GNU.sparse.offset", "0")
        + record("GNU.sparse.numbytes", "4")
    )
    + header("a.png", 4)
    + padded(b"data"),
    "0.1": pax(record("GNU.sparse.map", "0,4") + record("GNU.sparse.name", "a.png"))
    + header("x", 4)
    + padded(b"data"),
    "1.0": pax(
        record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "a.png")
    )
    + header("x", 516)
    + padded(b"1\n0\n4\n")
    + padded(b"data"),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_a_member_with_holes_is_forbidden_and_its_neighbours_go_on(kind: str) -> None:
    Path("photos.tar").write_bytes(GOOD + SPARSE[kind] + GOOD + END)
    assert outcomes(Sources(["photos.tar"])) == [
        ("photos.tar/good.png", b"good"),
        ("photos.tar/a.png", ErrorCode.SOURCE_FORBIDDEN),
        ("photos.tar/good.png", b"good"),
    ]


@pytest.mark.parametrize("path", ["photos.tar", "photos.tgz", "photos.zip"])
def test_a_member_at_the_limit_is_read_and_one_byte_more_is_too_large(path: str) -> None:
    pack(path, {"at.png": b"x" * 10, "over.png": b"x" * 11, "last.png": b"1"})
    assert outcomes(Sources([path], max_bytes=10)) == [
        (f"{path}/at.png", b"x" * 10),
        (f"{path}/over.png", ErrorCode.TOO_LARGE),
        (f"{path}/last.png", b"1"),
    ]


# --- what is refused as a whole


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "zip"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"not an archive at all", b"x" * 2000, gzip.compress(b"something else")),
        *(b"PK\x03\x04", b"PK\x05\x06" + b"\xff" * 18),
    ],
    # Named, because gzip writes the time: otherwise each test process would collect other names.
    ids=["empty", "text", "letters", "gzip of text", "start of a ZIP", "end of a ZIP"],
)
def test_a_file_that_is_no_archive_is_refused_before_anything_is_read(suffix: str, content: bytes) -> None:
    Path(f"photos.{suffix}").write_bytes(content)
    with pytest.raises(
        SourceError, match=rf"photos\.{suffix} is not a (TAR|ZIP) archive .*: pack it again, or unpack"
    ):
        Sources([f"photos.{suffix}"])


@pytest.mark.parametrize(
    ("suffix", "mode", "name"),
    [
        ("tar.bz2", "w:bz2", "bzip2"),
        ("tbz2", "w:bz2", "bzip2"),
        ("tar.xz", "w:xz", "xz"),
        ("txz", "w:xz", "xz"),
        ("tar.gz", "w:xz", "xz"),
    ],
)
def test_an_archive_whose_unpacking_cannot_be_bounded_is_refused(suffix: str, mode: str, name: str) -> None:
    with tarfile.open(f"photos.{suffix}", mode) as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(
        SourceError, match=rf"photos\.{suffix} is compressed with {name}, .* with gzip, or unpack"
    ):
        Sources([f"photos.{suffix}"])


def test_a_plain_archive_whose_first_member_has_a_suspicious_name_is_read() -> None:
    pack("photos.tar", {"BZh9.png": b"1"})
    assert outcomes(Sources(["photos.tar"])) == [("photos.tar/BZh9.png", b"1")]


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end() -> None:
    # Given a header with a wrong checksum, which tarfile itself would take for the end
    broken = bytearray(GOOD)
    broken[5] ^= 1
    Path("photos.tar").write_bytes(GOOD + broken + GOOD + END)
    with pytest.raises(SourceError, match="a broken header, or the end is missing"):
        list(Sources(["photos.tar"]))


def test_gzips_checksum_is_looked_at() -> None:
    pack("photos.tgz", {"a.png": b"1"})
    content = bytearray(Path("photos.tgz").read_bytes())
    content[-8] ^= 1
    Path("photos.tgz").write_bytes(content)
    with pytest.raises(SourceError, match="CRC check failed"):
        list(Sources(["photos.tgz"]))


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_whatever_is_wrong_with_an_archive_is_a_source_error_or_a_members(kind: str) -> None:
    # Given an archive with some bytes overwritten, in 500 reproducible ways
    whole = pax(record("path", "é" * 80 + ".png")) + header("x", 3) + padded(b"abc")
    whole += SPARSE["1.0"] + SPARSE["old"] + header("a/" * 60 + "b.png", 3) + padded(b"abc") + GOOD + END
    if kind == "zip":
        pack("photos.zip", {"a.png": b"a" * 50, "b/c.png": bytes(range(50)), "dé.png": b"d"})
        whole = Path("photos.zip").read_bytes()
    chance = random.Random(7)
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.choice(
                (0, 1, 48, 57, 0x7F, 0xFF, chance.randrange(256))
            )
        path = f"photos.{kind}"
        Path(path).write_bytes(gzip.compress(content, 1) if kind == "tgz" else content)
        # Then reading it raises nothing but a SourceError
        with suppress(SourceError):
            outcomes(Sources([path]))


# --- limits


@pytest.mark.parametrize("path", ["photos.tar", "photos.tgz", "photos.zip"])
def test_as_many_members_as_are_allowed_and_not_one_more(path: str) -> None:
    # Given an archive of four members, one of which is a folder and another a text file
    pack(path, {"a/": b"", "a/b.png": b"1", "c.txt": b"2", "d.png": b"3"})
    allowed = Sources([path], archives=ArchiveLimits(max_members=4))
    assert [name for name, _ in outcomes(allowed)] == [f"{path}/a/b.png", f"{path}/d.png"]
    with pytest.raises(SourceError, match=r"has more than 3 members: .* LABELMILL_MAX_ARCHIVE_MEMBERS"):
        list(Sources([path], archives=ArchiveLimits(max_members=3)))


def test_what_comes_out_of_an_archive_is_bounded_by_its_size_whether_it_is_read_or_not() -> None:
    # Given an image, or another file, that gzip has compressed to a thousandth
    for name in ("image.png", "text.txt"):
        pack("bomb.tgz", {name: bytes(20_000_000)})
        with pytest.raises(SourceError, match=r"more than 200 times its own size.*_EXPANSION higher"):
            list(Sources(["bomb.tgz"]))
        assert len(list(Sources(["bomb.tgz"], archives=ArchiveLimits(max_expansion=2000)))) == (
            name[0] == "i"
        )


def test_what_follows_the_end_counts_too() -> None:
    Path("bomb.tgz").write_bytes(gzip.compress(GOOD + END + bytes(20_000_000)))
    with pytest.raises(SourceError, match="more than 200 times its own size"):
        list(Sources(["bomb.tgz"]))


def test_a_large_member_takes_no_memory_unless_it_is_read() -> None:
    # Given a film of 30 MB, and an image of 30 MB that is too large
    pack("photos.tgz", {"film.mp4": bytes(30_000_000), "film.png": bytes(30_000_000), "a.png": b"1"})
    sources = Sources(["photos.tgz"], max_bytes=1000, archives=ArchiveLimits(max_expansion=2000))
    assert peak_of(lambda: list(sources)) < 2_000_000
    assert outcomes(sources)[-1] == ("photos.tgz/a.png", b"1")


def test_a_name_longer_than_a_path_may_be_is_forbidden_and_its_neighbours_go_on() -> None:
    # Given members with names at and over the limit, in one-byte and two-byte letters
    short, long = "n" * (4096 - len("a.tar/")), "n" * (4097 - len("a.tar/"))
    wide = "\u00e9" * 2048
    pack("a.tar", {"a.png": b"a", short: b"s", long: b"l", wide: b"w", "z.png": b"z"})
    # When the archive is read, then names that are too long are shortened
    assert outcomes(Sources(["a.tar"])) == [
        ("a.tar/a.png", b"a"),
        (f"a.tar/{short}", b"s"),
        (f"a.tar/{long}"[:200] + "...", ErrorCode.SOURCE_FORBIDDEN),
        (f"a.tar/{wide}"[:200] + "...", ErrorCode.SOURCE_FORBIDDEN),
        ("a.tar/z.png", b"z"),
    ]


def test_long_names_that_take_no_room_in_the_archive_take_none_in_memory() -> None:
    # Given a small archive of many members, each with a name of 200 KB
    pack("a.tgz", {f"{number}{'n' * 200_000}.png": b"x" for number in range(100)})
    assert Path("a.tgz").stat().st_size < 200_000
    # When all its images are held at once, as in a chunk, then memory stays small
    archives = ArchiveLimits(max_expansion=100_000)
    assert peak_of(lambda: list(Sources(["a.tgz"], archives=archives))) < 3_000_000


def test_members_are_forgotten_when_they_were_read() -> None:
    # Given thousands of members, each with a global header for all that follow
    def archive(members: int) -> None:
        body = b"".join(
            pax(record(f"mine.{number}", "x" * 300), tarfile.XGLTYPE) + header(f"{number}.png")
            for number in range(members)
        )
        Path("photos.tar").write_bytes(body + END)

    def peak(members: int) -> int:
        archive(members)
        return peak_of(lambda: sum(1 for _ in Sources(["photos.tar"])))

    peak(10)  # the first run also imports and caches
    assert peak(1500) < peak(150) + 500_000


HUGE = 2**33 - 1

# Headers that declare more than should be held in memory, or that never end.
ENDLESS = {
    "a long name": header("././@LongLink", HUGE, tarfile.GNUTYPE_LONGNAME),
    "a long link": header("././@LongLink", HUGE, tarfile.GNUTYPE_LONGLINK),
    "an extended header": header("pax", HUGE, tarfile.XHDTYPE),
    "a global header": header("pax", HUGE, tarfile.XGLTYPE),
    "a negative size": header("pax", -(2**40), tarfile.XHDTYPE),
    "a negative member": header("a.txt", -(2**40)),
    "a member of all there is": header("a.png", -1),
    "headers of headers": pax(record("a", "b")) * 1000,
    "a map without end": sparse_old()[:BLOCK] + (bytes(504) + b"\1" + bytes(7)) * 10_000,
    "a map of many pieces": SPARSE["1.0"][: 3 * BLOCK] + padded(b"1000000000\n" + b"1\n" * 5_000_000),
}


@pytest.mark.parametrize(
    ("kind", "zipped"),
    [*((kind, False) for kind in ENDLESS), ("a long name", True), ("a map without end", True)],
)
def test_a_header_without_end_is_refused_in_bounded_memory(kind: str, zipped: bool) -> None:
    # Given such a header, followed by 30 MB
    content = GOOD + ENDLESS[kind] + bytes(30_000_000)
    Path("photos.tar").write_bytes(gzip.compress(content, 1) if zipped else content)
    sources = Sources(["photos.tar"], archives=ArchiveLimits(max_expansion=10_000))

    def read() -> None:
        with pytest.raises(SourceError, match="not a TAR archive that can be read to its end"):
            list(sources)

    assert peak_of(read) < 5_000_000


def test_a_number_without_end_costs_no_time() -> None:
    # Given an extended header of digits, which tarfile would search for seconds
    Path("photos.tar").write_bytes(pax(b"1" * 200_000) + GOOD + END)
    begun = time.process_time()
    with pytest.raises(SourceError, match="a number without end"):
        Sources(["photos.tar"])
    assert time.process_time() - begun < 1


def test_an_ordinary_long_number_in_a_name_is_none_of_those() -> None:
    name = "1234567890" * 20 + ".png"
    pack("photos.tar", {name: b"1"})
    assert outcomes(Sources(["photos.tar"])) == [(f"photos.tar/{name}", b"1")]
