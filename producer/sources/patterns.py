"""Find the paths that a pattern such as photos/**/*.png names.

wcmatch decides what matches, but does not walk the folders: its walk holds a whole folder in memory, silently
skips folders that cannot be listed, and follows symlinks out of the pattern's folder.
"""
# Paths are strings, as in `files`.
# ruff: noqa: PTH112, PTH114, PTH118

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from wcmatch import glob

from jobs.reading import why
from producer.sources.files import entries, is_below
from producer.sources.image import is_hidden

#: `**` matches any number of folders. Matching is case-sensitive on every system.
_FLAGS: Final = glob.GLOBSTAR | glob.CASE


class Match(NamedTuple):
    """A path that a pattern names."""

    path: str
    #: For a symlink to a file: the resolved path.
    resolved: str | None = None
    #: Whether it is a symlink that leads out of the pattern's folder.
    leaves: bool = False
    #: For a folder that cannot be listed: the reason.
    error: str | None = None


def is_pattern(text: str) -> bool:
    """Return whether a name contains a wildcard, or a backslash that escapes one."""
    return glob.is_magic(text, flags=_FLAGS)


class Pattern:
    """A pattern: the folder that it begins with, and what must match below it."""

    def __init__(self, text: str) -> None:
        parts = [part for part in text.split("/") if part not in ("", ".")]
        first = next(place for place, part in enumerate(parts) if is_pattern(part))
        #: Everything before the first part with a wildcard. Symlinks in it are followed: the user named it.
        self.folder = "/" * text.startswith("/") + "/".join(parts[:first])
        parts = parts[first:]
        self._recursive = "**" in parts
        levels = parts.index("**") if self._recursive else len(parts) - 1
        # For each level before the first `**`: the folders on the way to a match.
        self._parents = [glob.compile("/".join(parts[: level + 1]), flags=_FLAGS) for level in range(levels)]
        self._whole = glob.compile("/".join(parts) + "/" * text.endswith("/"), flags=_FLAGS)
        self._with_hidden = any(part.startswith(".") for part in parts)

    def matches(self) -> Iterator[Match]:
        """Yield every path that the pattern names once, depth first, in the order of the names.

        Names are sorted in windows (see `entries`). A pattern with `**` yields only files, because it also
        matches each file of a folder that it matches. Symlinks to folders are not followed. A
        symlink that leads out of the pattern's folder is yielded with `leaves`, but not followed. A folder
        that cannot be listed is always yielded with `error`, because it may contain matches.
        """
        root = os.path.realpath(self.folder)
        levels = [("", entries(self.folder))]
        while levels:
            prefix, listing = levels[-1]
            try:
                entry = next(listing, None)
            except (FileNotFoundError, NotADirectoryError):  # nothing in it matches
                entry = None
            except OSError as error:
                entry = None
                yield Match(os.path.join(self.folder, prefix) or ".", error=why(error))
            if entry is None:
                levels.pop()
                continue
            name = prefix + entry.name
            path = os.path.join(self.folder, name)
            is_folder, is_link = os.path.isdir(path), os.path.islink(path)
            matched = self._whole.match(name + "/" * is_folder)
            descends = is_folder and self._may_contain_matches(
                name, entry.name, len(levels) - 1, is_link=is_link
            )
            if is_link:
                resolved = os.path.realpath(path)
                if (matched or descends) and not is_below(resolved, root):
                    yield Match(path, leaves=True)
                elif matched and not is_folder:
                    yield Match(path, resolved)
            elif matched and not (is_folder and self._recursive):
                yield Match(path)
            elif descends:
                levels.append((name + "/", entries(path)))

    def _may_contain_matches(self, name: str, base: str, level: int, *, is_link: bool) -> bool:
        """Return whether this folder may contain matches."""
        if level < len(self._parents):
            return self._parents[level].match(name)
        return self._recursive and not is_link and (self._with_hidden or not is_hidden(base))
