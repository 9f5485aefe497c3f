"""What lies under a folder: how much room there is, and on what kind of file system."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from labelmill.doctor.findings import Area, Finding

#: With less room than this, in bytes and as a share, it is time to make some.
_LEAST_BYTES: Final = 1024**3
_LEAST_SHARE: Final = 0.05

#: File systems over a network: their locks, and memory shared between processes, do not do what SQLite needs.
_NETWORK: Final = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gfs2|ocfs2|beegfs|gpfs|virtiofs|fuse\.(?!fuse-overlayfs).*"
)

#: Where Linux lists its file systems.
_MOUNTS: Final = Path("/proc/self/mounts")


def check_space(area: Area, folder: Path) -> Finding:
    """Whether there is room on the disk that has this folder, or will have it."""
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    share = disk.free / disk.total if disk.total else 1.0
    what = f"{disk.free / 1024**3:,.1f} GiB ({share:.0%}) free on the disk of {folder}"
    if disk.free >= _LEAST_BYTES and share >= _LEAST_SHARE:
        return area.ok(what)
    return area.warning(
        f"only {what}",
        fix=f"labelmill purge, or more room: `du -xh -d 3 {shlex.quote(str(folder))} | sort -h`",
    )


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that the path is on; None for a local one, and where there is no
    telling.
    """
    if sys.platform != "linux":
        return None
    found, kind = Path("/"), ""
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, mount, file_system, *_ = line.split(" ")
        # Spaces and the like are written as octal numbers.
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount))
        if path.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, file_system
    return kind if _NETWORK.fullmatch(kind) else None
