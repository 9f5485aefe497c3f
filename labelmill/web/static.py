"""`/static`: the style, the scripts and the icon of the pages."""

from __future__ import annotations

import hashlib
import mimetypes
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response

from jobs.errors import NotFound
from labelmill.reporting.rendering import TEMPLATES

router = APIRouter(prefix="/static", include_in_schema=False)

#: The URL of a file contains its version, so browsers need not ask again.
_FOREVER: Final = "public, max-age=31536000, immutable"

_PAGE_STYLE: Final = TEMPLATES / "page.css"


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Return the content and the media type of each file, by name."""
    folder = Path(__file__).parent / "static"
    paths = [_PAGE_STYLE, *(each for each in folder.iterdir() if each.suffix in (".css", ".js", ".svg"))]
    return {
        each.name: (each.read_bytes(), mimetypes.guess_type(each.name)[0] or "text/plain") for each in paths
    }


@cache
def static_url(name: str) -> str:
    """Return the URL of a file in its present version."""
    content, _ = _files()[name]
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"


@router.get("/{name}")
async def read_static(name: str, v: str = "") -> Response:  # noqa: ARG001 -- the version is for the browser
    """Return a file."""
    if name not in _files():
        raise NotFound(f"There is no file {name!r}.")
    content, media_type = _files()[name]
    return Response(content, media_type=media_type, headers={"Cache-Control": _FOREVER})
