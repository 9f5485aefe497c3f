"""Render the pages' templates, with what every page has: the navigation, the key and the headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment
from markupsafe import Markup

from jobs.ledger.api.keys import ApiKey
from labelmill.console.terminal import format_duration, pluralize
from labelmill.reporting.rendering import make_environment
from labelmill.server.guards import CSRF_HEADER
from labelmill.web.static import static_url
from producer.sources.image import IMAGE_EXTENSIONS

#: What a browser may do with a page: nothing that does not come from this server.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

#: With `no-referrer`, browsers would not say which site sends the form with the key.
_HEADERS: Final = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}

#: A time that is further away is shown as a date.
_FAR_SECONDS: Final = 7 * 86_400


def page(request: Request, template: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    """Return a page: its template, with these values escaped."""
    key: ApiKey | None = getattr(request.state, "key", None)
    text = (
        _environment()
        .get_template(template)
        .render(
            path=request.scope["path"],
            key=key,
            csrf_header=CSRF_HEADER,
            csrf_token=getattr(request.state, "csrf_token", None),
            **values,
        )
    )
    return HTMLResponse(text, status_code=status, headers=_HEADERS)


def number(value: float | None) -> str:
    """Return a number with its thousands grouped; a dash if it is None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def ago(when: datetime | None) -> Markup:
    """Return a past time as people say it, and the exact one as the title; a dash if it is None."""
    return _said(when, lambda seconds: "just now" if seconds < 5 else f"{_duration(seconds)} ago")


def ahead(when: datetime | None) -> Markup:
    """Return a time to come as people say it, and the exact one as the title; a dash if it is None."""
    return _said(when, lambda seconds: f"in {_duration(max(0.0, -seconds))}")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3_600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 86_400:.0f} days" if seconds > 2 * 86_400 else format_duration(seconds)


def _said(when: datetime | None, in_words: Callable[[float], str]) -> Markup:
    if when is None:
        return Markup("–")
    seconds = (datetime.now(UTC) - when).total_seconds()
    words = f"{when:%Y-%m-%d}" if abs(seconds) > _FAR_SECONDS else in_words(seconds)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        when.isoformat(timespec="seconds"), f"{when:%Y-%m-%d %H:%M:%S} UTC", words
    )


def query_of(values: Mapping[str, Any]) -> str:
    """Return the query of a URL with these parameters, without those that are None, empty or false."""
    return urlencode(
        {
            name: "true" if value is True else value
            for name, value in values.items()
            if value is not None and value is not False and value != ""
        }
    )


def dict_with(values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the mapping with more values."""
    return {**values, **more}


@cache
def _environment() -> Environment:
    environment = make_environment(Path(__file__).parent)
    environment.globals |= {"static": static_url, "image_endings": sorted(IMAGE_EXTENSIONS)}
    environment.filters |= {"number": number, "ago": ago, "query": query_of, "dict_with": dict_with}
    environment.filters |= {"ahead": ahead, "counted": pluralize}
    return environment
