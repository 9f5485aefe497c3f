"""Find the reader of each source that a user names, and read them one after the other."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from jobs.errors import ErrorCode, SourceError
from jobs.limits import ArchiveLimits, ImageLimits
from jobs.network.objects import is_url, local_path, shown_url
from jobs.reading import why
from jobs.text import storable
from producer.sources.archives import HEAD_BYTES, archive_format
from producer.sources.files import (
    access_error,
    head,
    leaving_symlink,
    read_file,
    read_folder,
    read_link,
    read_special,
    shown,
)
from producer.sources.idx import check_idx, is_idx, read_idx
from producer.sources.image import IMAGE_EXTENSIONS, Reading, SourceImage, SourceImages, extension, failed
from producer.sources.manifest import Manifest
from producer.sources.patterns import Pattern, is_pattern
from producer.sources.remote import check_remote, read_remote
from producer.sources.rows import is_manifest

_STDIN = "-"

_DEFAULT_MAX_BYTES = ImageLimits().max_bytes
_DEFAULT_ARCHIVES = ArchiveLimits()

_Reader = Callable[[str, Reading], Iterator[SourceImage | SourceImages]]


class Sources:
    """The images of files, folders, globs, archives, manifests and URLs, and of the paths on stdin (`-`).

    All named sources are checked before anything is read: SourceError says what is wrong and what to do. Each
    iteration reads everything again; only stdin cannot be read twice. If a source that a glob matches or that
    stdin names cannot be read, that is one image's error.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        stdin: Iterable[str] | None = None,
        max_bytes: int = _DEFAULT_MAX_BYTES,
        archives: ArchiveLimits = _DEFAULT_ARCHIVES,
        private_hosts: Collection[str] = (),
    ) -> None:
        """Check the sources. Raises SourceError.

        `max_bytes` limits one image, `archives` one archive. Manifests may link to `private_hosts` although
        their addresses are private.
        """
        if list(sources).count(_STDIN) > 1:
            raise SourceError("`-` is given twice, but stdin can be read only once: name it once")
        self._stdin = stdin
        self._stdin_read = False
        self._limits = max_bytes, archives
        self._private_hosts = private_hosts
        self._reading = Reading(*self._limits)
        self._sources = [(source, self._source_reader(source)) for source in map(local_source, sources)]

    @property
    def skipped(self) -> int:
        """Return how many files the latest iteration skipped for their names so far."""
        return self._reading.skipped

    @property
    def unreadable(self) -> int:
        """Return the number of images that the latest iteration could not read so far."""
        return self._reading.unreadable

    @property
    def first_unreadable(self) -> SourceImage | None:
        """Return the first image that could not be read, with its error, or None."""
        return self._reading.first_unreadable

    def __iter__(self) -> Iterator[SourceImage]:
        for found in self.batches():
            if isinstance(found, SourceImages):
                yield from found.one_by_one()
            else:
                yield found

    def batches(self) -> Iterator[SourceImage | SourceImages]:
        """Yield the same images in the same order. Those that were read together are one SourceImages."""
        self._reading = reading = Reading(*self._limits)
        for source, reader in self._sources:
            for found in reader(source, reading):
                yield found if isinstance(found, SourceImages) else reading.count(found)

    def _source_reader(self, source: str) -> _Reader:
        """Return the reader of a named source. Raises SourceError if there is none."""
        if not source:
            raise SourceError("an empty name is not a source: name a file or folder, `.` for the current one")
        if source == _STDIN:
            if self._stdin is None:
                raise SourceError("`-` stands for paths on stdin, but there is no stdin here: name the paths")
            return self._read_stdin
        if is_url(source):
            check_remote(source)
            return read_remote
        try:
            mode = _mode(source)
        except (OSError, ValueError) as error:
            advice = "check the spelling, and the folder you are in"
            if not is_pattern(source):
                if isinstance(error, PermissionError):
                    advice = "check the permissions of the folders that it is in"
                raise SourceError(f"cannot find {shown(source)} ({why(error)}): {advice}") from error
            _check_pattern(source, advice)
            return _read_pattern
        if stat.S_ISREG(mode) and is_manifest(source):
            return self._manifest_reader(source)
        if stat.S_ISDIR(mode):
            _check_folder(source)
        return _reader(source, mode, self._reading)

    def _manifest_reader(self, path: str) -> _Reader:
        """Return the reader of a manifest. Raises SourceError if it cannot be used."""
        manifest = Manifest(
            path,
            shown(path),
            self._limits[0],
            folder=os.path.dirname(path),  # noqa: PTH120 -- a path is a string here
            private_hosts=self._private_hosts,
        )
        manifest.check()
        return lambda _path, _reading: manifest.images()

    def _read_stdin(self, source: str, reading: Reading) -> Iterator[SourceImage | SourceImages]:  # noqa: ARG002 - a reader's signature
        if self._stdin_read:
            raise SourceError(
                "stdin was read already and cannot be read again: save its paths to a file first"
            )
        self._stdin_read = True
        for line in self._stdin or ():
            if line.strip():
                yield from _read_unchecked(line.removesuffix("\n").removesuffix("\r"), reading)


def no_images(images: object) -> SourceError:
    """Return the error of a submission whose sources contain no image."""
    skipped = images.skipped if isinstance(images, Sources) else 0
    hint = f" (files skipped because of their names: {skipped:,})" if skipped else ""
    return SourceError(f"The sources contain no images{hint}: name other sources. Nothing was submitted.")


def local_source(source: str) -> str:
    """Return the path of a `file://` URL, or any other source unchanged. Raises SourceError."""
    try:
        return local_path(source)
    except ValueError as error:
        raise SourceError(f"cannot read {shown(source)}: {error}") from None


def _mode(path: str) -> int:
    """Return a file's mode, following symlinks. Raises OSError, or ValueError for a NUL."""
    return os.stat(path).st_mode  # noqa: PTH116 - faster, and stdin may name millions


def _reader(path: str, mode: int, reading: Reading) -> _Reader:
    """Return the reader of an existing file or folder. Raises SourceError if an archive cannot be read."""
    if stat.S_ISDIR(mode):
        return read_folder
    if not stat.S_ISREG(mode):
        return read_special
    return file_reader(path, path.rpartition("/")[2], reading)


def file_reader(path: str, name: str, reading: Reading) -> Callable[[str, Reading], Iterator[SourceImage]]:
    """Return the reader of a regular file that is no manifest, by its owner's name for it and its content.

    Raises SourceError if it cannot be read as a whole.
    """
    if extension(name) in IMAGE_EXTENSIONS:  # the worker judges what it is
        return read_file
    if extension(name) == "json":
        raise SourceError(
            f"{shown(path)} is neither an image nor a manifest: write one JSON object per line, and name it "
            ".jsonl"
        )
    first = head(path, HEAD_BYTES)
    if archive := archive_format(path, name, first):
        archive.check(path, reading.archives)
        return archive.read
    if is_idx(path, name, first[:4]):
        check_idx(path, reading.max_bytes)
        return read_idx
    return read_file


def _check_folder(path: str) -> None:
    """Raise SourceError if a named folder cannot be listed: its job would have one image, an error."""
    try:
        os.scandir(path).close()
    except OSError as error:
        raise access_error(path, error, "listed") from error


def _check_pattern(pattern: str, advice: str) -> None:
    """Raise SourceError if a pattern matches nothing.

    The error names a folder that could not be listed, if there is one, and gives `advice` otherwise.
    """
    unlisted = None
    for match in Pattern(pattern).matches():
        if match.error is None:
            return
        unlisted = unlisted or match
    if unlisted is not None:
        advice = f"{shown(unlisted.path)} cannot be listed ({unlisted.error}), check its permissions"
    raise SourceError(f"no file matches {shown(pattern)}: {advice}")


def _read_pattern(pattern: str, reading: Reading) -> Iterator[SourceImage | SourceImages]:
    found = Pattern(pattern)
    for path, resolved, leaves, error in found.matches():
        if error is not None:
            yield failed(shown(path), ErrorCode.SOURCE_MISSING, error)
        elif leaves:
            yield leaving_symlink(path)
        else:
            yield from _read_unchecked(path, reading, root=found.folder, resolved=resolved)


def _read_unchecked(
    path: str, reading: Reading, *, root: str | None = None, resolved: str | None = None
) -> Iterator[SourceImage | SourceImages]:
    """Read a path that was not checked before. An error concerns this path only.

    `root` is the folder that no symlink below the path may leave: the path itself if it is left out.
    `resolved` is the file that the path leads to, if the path is a symlink.
    """
    if is_url(path):
        yield from _read_unchecked_url(path, reading)
        return
    try:
        mode = _mode(path)
    except (OSError, ValueError) as error:
        yield failed(shown(path), ErrorCode.SOURCE_MISSING, why(error))
        return
    try:
        reader = _reader(path, mode, reading)
    except SourceError as error:
        yield failed(shown(path), ErrorCode.FORMAT_NOT_ALLOWED, str(error))
        return
    try:
        if reader is read_folder:
            yield from read_folder(path, reading, root)
        elif reader is read_file and resolved is not None:
            yield from read_link(path, resolved, reading)
        else:
            yield from reader(path, reading)
    except SourceError as error:
        yield failed(shown(path), ErrorCode.CORRUPT, str(error))


def _read_unchecked_url(url: str, reading: Reading) -> Iterator[SourceImage | SourceImages]:
    try:
        path = local_source(url)
        yield from read_remote(url, reading) if path == url else _read_unchecked(path, reading)
    except SourceError as error:
        yield failed(storable(shown_url(url)), ErrorCode.SOURCE_MISSING, str(error))
