"""Archives that nobody should unpack, built here: with members that lead elsewhere, and whole bombs."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

MEGABYTE: Final = 1024 * 1024

#: Names that lead out of an archive, to whoever extracts it. `{outside}` is a folder that is there.
LEAVING: Final = {
    "parent": "../escaped.png",
    "far-parent": "a/../../escaped.png",
    "absolute": "{outside}/escaped.png",
    "nul": "escaped.txt\0.png",
    "backslash": "..\\escaped.png",
}

_KINDS: Final = {"symlink": stat.S_IFLNK, "device": stat.S_IFCHR, "fifo": stat.S_IFIFO}
_TAR_KINDS: Final = {
    "symlink": tarfile.SYMTYPE,
    "hard-link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "block-device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "unknown": b"Z",
}


def zip_with_bad_members(path: Path, good: bytes, outside: Path) -> list[str]:
    """Good members, and between them each that must not be read; gives back how those are called."""
    bad = [name.format(outside=outside) for name in LEAVING.values()] + [f"{kind}.png" for kind in _KINDS]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(bad):
            archive.writestr(f"good{number}.png", good)
            member = zipfile.ZipInfo(name.replace("\0", "N"))
            kind = _KINDS.get(name.removesuffix(".png"), stat.S_IFREG)
            member.external_attr = (kind | 0o644) << 16
            archive.writestr(member, str(outside / "secret.png") if kind == stat.S_IFLNK else good)
        archive.writestr("last.png", good)
    # zipfile writes no NUL.
    path.write_bytes(path.read_bytes().replace(b"escaped.txtN.png", b"escaped.txt\0.png"))
    return bad


def tar_with_bad_members(path: Path, good: bytes, outside: Path) -> list[str]:
    """The same as a TAR, gzipped where its name says so."""
    bad = [name.format(outside=outside) for name in LEAVING.values()] + [f"{kind}.png" for kind in _TAR_KINDS]
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE) -> None:
            member = tarfile.TarInfo(name.replace("\0", "N"))
            if "\0" in name:  # the only place for it
                member.pax_headers = {"path": name}
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(good)
            else:
                member.linkname = str(outside / "secret.png")
            archive.addfile(member, io.BytesIO(good))

        for number, name in enumerate(bad):
            add(f"good{number}.png")
            add(name, _TAR_KINDS.get(name.removesuffix(".png"), tarfile.REGTYPE))
        add("last.png")
    return bad


def zip_with_huge_member(path: Path, good: bytes) -> None:
    """A member of half a gigabyte between good ones: too large for anybody to hold, too small for a bomb."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", good)
        with archive.open("huge.png", "w") as member:
            for _ in range(512):
                member.write(bytes(MEGABYTE))
        archive.writestr("last.png", good)


# ---- refused as a whole -------------------------------------------------------------------------------


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _patched(path: Path, name: str, at: int, form: str, value: int) -> None:
    """Overwrites a field of a member's entry in the archive's directory."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.rindex(name.encode()) - 46 + at, value)
    path.write_bytes(content)


def bomb_zip(path: Path) -> None:
    """Members within every limit, which together unpack to a thousand times the archive."""
    _zip(path, {f"{number}.png": bytes(20 * MEGABYTE) for number in range(10)})


def overlapping_zip(path: Path) -> None:
    """A thousand members that are all the same bytes: as many images as one likes from one."""
    _copied_zip(path, bytes(MEGABYTE), copies=1000)


def lying_small_zip(path: Path) -> None:
    """A member of 20 MB that says it has 100 bytes."""
    _zip(path, {"a.png": bytes(20 * MEGABYTE)})
    _patched(path, "a.png", 24, "<I", 100)


def lying_large_zip(path: Path) -> None:
    """A member of 100 bytes that says it has 2 GB."""
    _zip(path, {"a.png": bytes(100)})
    _patched(path, "a.png", 24, "<I", 2**31)


def encrypted_zip(path: Path) -> None:
    """A member that takes a password."""
    _zip(path, {"a.png": b"a"})
    _patched(path, "a.png", 8, "<H", 1)


def million_zip(path: Path) -> None:
    """A million members, as its end says, too."""
    _empty_members_zip(path, 1_000_000, said=1_000_000)


def lying_count_zip(path: Path) -> None:
    """300,000 members, and its end says that there is one."""
    _empty_members_zip(path, 300_000, said=1)


def bomb_tgz(path: Path) -> None:
    """A member of half a gigabyte, gzipped to a thousandth."""
    head = tarfile.TarInfo("bomb.png")
    head.size = 512 * MEGABYTE
    with gzip.open(path, "wb", 6) as file:
        file.write(head.tobuf())
        for _ in range(512):
            file.write(bytes(MEGABYTE))
        file.write(bytes(1024))


def long_name_tar(path: Path) -> None:
    """A member whose name is said to have 8 GB, and the file has them, though nobody has written them."""
    head = tarfile.TarInfo("././@LongLink")
    head.type = tarfile.GNUTYPE_LONGNAME
    head.size = 2**33 - 1
    path.write_bytes(tarfile.TarInfo("a.png").tobuf() + head.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(2**33 + 4096)


def pax_tgz(path: Path) -> None:
    """An extended header of half a gigabyte."""
    head = tarfile.TarInfo("pax")
    head.type = tarfile.XHDTYPE
    head.size = 512 * MEGABYTE
    with gzip.open(path, "wb", 6) as file:
        file.write(tarfile.TarInfo("a.png").tobuf() + head.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(512):
            file.write(b"x" * MEGABYTE)


def xz_tar(path: Path) -> None:
    """One that can ask for any memory to be unpacked."""
    with tarfile.open(path, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))


def cut_tar(path: Path) -> None:
    """One that ends in the middle of its second member."""
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size = 5000
            archive.addfile(member, io.BytesIO(bytes(5000)))
    path.write_bytes(path.read_bytes()[:7000])


#: Every archive that is refused: its file's name, how it is made, and what is said of it.
REFUSED: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "bomb.zip": (bomb_zip, "times its own size"),
    "overlapping.zip": (overlapping_zip, "members that overlap"),
    "million.zip": (million_zip, "more than 250,000 members"),
    "lying-count.zip": (lying_count_zip, "more than 250,000 members"),
    "lying-small.zip": (lying_small_zip, "lies about sizes|times its own size"),
    "lying-large.zip": (lying_large_zip, "lies about sizes"),
    "encrypted.zip": (encrypted_zip, "is encrypted"),
    "bomb.tgz": (bomb_tgz, "times its own size"),
    "long-name.tar": (long_name_tar, "a header without end"),
    "pax.tgz": (pax_tgz, "a header without end"),
    "compressed.tar.xz": (xz_tar, "is compressed with xz"),
    "cut.tar": (cut_tar, "the end is missing"),
}


def _local_header(name: bytes, packed: bytes, content: bytes, method: int) -> bytes:
    checksum = zlib.crc32(content)
    fields = (b"PK\3\4", 20, 0, method, 0, 0, checksum, len(packed), len(content), len(name), 0)
    return struct.pack("<4s5H3L2H", *fields) + name


def _entry(name: bytes, packed: bytes, content: bytes, method: int, offset: int) -> bytes:
    checksum = zlib.crc32(content)
    fields = (b"PK\1\2", 20, 20, 0, method, 0, 0, checksum, len(packed), len(content), len(name), *[0] * 4, 0)
    return struct.pack("<4s6H3L5H2L", *fields, offset) + name


def _end(count: int, size: int, offset: int) -> bytes:
    """The records that end an archive, with those for large numbers."""
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
    small = min(count, 0xFFFF)
    return large + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, small, small, size, offset, 0)


def _copied_zip(path: Path, content: bytes, *, copies: int) -> None:
    compressor = zlib.compressobj(9, wbits=-15)
    packed = compressor.compress(content) + compressor.flush()
    body = _local_header(b"a.png", packed, content, zipfile.ZIP_DEFLATED) + packed
    directory = _entry(b"a.png", packed, content, zipfile.ZIP_DEFLATED, 0) * copies
    path.write_bytes(body + directory + _end(copies, len(directory), len(body)))


def _empty_members_zip(path: Path, count: int, *, said: int) -> None:
    """Members without content, one after the other, each with a name of its own."""
    head, entry = _local_header(b"", b"", b"", 0), _entry(b"", b"", b"", 0, 0)
    head, entry = head[:26] + struct.pack("<HH", 7, 0), entry[:28] + struct.pack("<H", 7) + entry[30:42]
    step = len(head) + 7
    with path.open("wb") as file:
        # The local headers, then the directory.
        file.writelines(head + b"%07d" % number for number in range(count))
        file.writelines(
            entry + struct.pack("<I", number * step) + b"%07d" % number for number in range(count)
        )
        file.write(_end(said, count * (len(entry) + 4 + 7), count * step))
