"""What other sites, other people and hostile names cannot do with the pages and a browser's session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import add_batch
from jobs.ledger.api.keys import Role, create_key, revoke_key, rotate_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.api.sessions import make_link
from jobs.ledger.learning.models import CHAMPION, point_alias, save_evaluation
from jobs.ledger.learning.runs import request_run
from jobs.models.model import Model
from jobs.schema import db_now, metadata, predictions, sessions, training_runs
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.server.guards import CSRF_HEADER
from tests.console import until
from tests.evaluations import made_evaluation
from tests.harness import Harness, digits
from tests.kerasfile import keras_file
from tests.registering import register_digits
from tests.serving import PAGES, page_paths, served_locally
from worker.learning.recipes import recipe_for

BROWSER: Final = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def url(settings: Settings, ledger: Ledger, store: Store) -> Iterator[str]:  # noqa: ARG001
    with served_locally(settings) as (_, url):
        yield url


@pytest.fixture
def key(ledger: Ledger) -> str:
    with ledger.transaction() as connection:
        return create_key(connection, "test", Role.ADMIN)[1]


@contextmanager
def signed_in(url: str, key: str) -> Iterator[httpx.Client]:
    """Yield a browser that has signed in with the key. It sends no CSRF token by itself."""
    with httpx.Client(base_url=url, headers=BROWSER, timeout=60) as browser:
        answer = browser.post("/sign-in", data={"key": key})
        assert (answer.status_code, answer.headers["location"]) == (303, "/home")
        yield browser


def cookie_of(browser: httpx.Client) -> tuple[str, str]:
    """Return the name and value of the browser's only cookie."""
    [cookie] = browser.cookies.jar
    return cookie.name, str(cookie.value)


def token_of(browser: httpx.Client) -> dict[str, str]:
    """Return the header that the scripts of a page send with each change."""
    found = re.search(r'name="csrf-token" content="(\w+)"', browser.get("/home").text)
    assert found
    return {CSRF_HEADER: found[1]}


def is_signed_in(browser: httpx.Client) -> bool:
    return browser.get("/home").status_code == 200


def contents(ledger: Ledger) -> dict[str, list[Any]]:
    """Return all rows that a request could change, but not the notes on who has asked."""
    noted = {"audit", "api_keys"}
    with ledger.reading() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in metadata.sorted_tables
            if table.name not in noted
        }


def unsafe_operations(browser: httpx.Client, **names: str) -> list[tuple[str, str, set[str]]]:
    """Return method, path and roles of all operations of the API that change something."""
    ids = {"batch_id": new_id(), "file_id": new_id(), "webhook_id": new_id(), "run_id": new_id()}
    ids |= {"model_id": CHAMPION, "index": "0", "dataset": "nothing"} | names
    return [
        (
            method.upper(),
            path.format_map(ids),
            {role for each in operation["security"] for role in each["HTTPBearer"]},
        )
        for path, operations in browser.get("/openapi.json").json()["paths"].items()
        for method, operation in operations.items()
        if method not in ("get", "head")
    ]


# ---- requests from other sites ------------------------------------------------------------------------


def test_a_change_needs_the_token_of_the_page(url: str, key: str, harness: Harness, ledger: Ledger) -> None:
    # Given a browser that is signed in, and a job
    job_id = harness.submit(digits(2))
    with signed_in(url, key) as browser:
        token = token_of(browser)
        operations = unsafe_operations(browser, batch_id=job_id)
        assert len(operations) >= 20
        before = contents(ledger)

        # When another site lets it send any change, without the token or with a wrong one
        for method, path, _ in [*operations, ("POST", "/sign-out", set()), ("POST", "/sign-in", set())]:
            for headers in ({}, {CSRF_HEADER: ""}, {CSRF_HEADER: "0" * 64}, {CSRF_HEADER: b"\xe9"}):
                answer = browser.request(method, path, headers=headers, json={})
                # Then it is refused, and nothing changes
                assert answer.status_code == 403, f"{method} {path}"
        assert contents(ledger) == before

        # The page itself can, and so can a program with the key, which needs no token
        pause = f"/v1/batches/{job_id}/pause"
        assert browser.post(pause, headers=token).status_code == 200
        assert httpx.post(f"{url}{pause}", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        # The token of another session is a wrong one
        with signed_in(url, key) as other:
            assert other.post(pause, headers=token).status_code == 403


def test_another_site_cannot_sign_people_in_with_a_key_of_its_own(url: str, key: str) -> None:
    for origin in ("https://evil.example", "null", url.replace("http:", "https:") + ".evil.example"):
        answer = httpx.post(f"{url}/sign-in", data={"key": key}, headers={"Origin": origin})
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False), origin
    assert httpx.post(f"{url}/sign-in", data={"key": key}, headers={"Origin": url}).status_code == 303


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/\x00/evil.example",
        "https://evil.example",
        "https:evil.example",
        "HTTPS:/\\evil.example",
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "evil.example",
        "@evil.example",
        "",
    ],
)
def test_signing_in_leads_to_this_server_only(url: str, key: str, ledger: Ledger, wanted: str) -> None:
    def host_of(answer: httpx.Response) -> str | None:
        assert answer.status_code == 303
        # As browsers read it: without tabs and line breaks, and with every slash the same
        location = re.sub(r"[\t\n\r]", "", answer.headers["location"]).strip().replace("\\", "/")
        return urlsplit(urljoin(f"{url}/sign-in", location)).netloc

    here = urlsplit(url).netloc
    assert host_of(httpx.post(f"{url}/sign-in", data={"key": key, "next": wanted})) == here
    if "\x00" not in wanted:
        with ledger.transaction() as connection:
            link = make_link(connection, key_id_of(connection))
        with httpx.Client(base_url=url, headers=BROWSER) as browser:
            assert host_of(browser.get("/sign-in", params={"link": link, "next": wanted})) == here
            assert host_of(browser.get("/sign-in", params={"next": wanted})) == here  # signed in already


def key_id_of(connection: sa.Connection) -> str:
    """Return the id of the only key."""
    return str(connection.execute(sa.text("SELECT id FROM api_keys")).scalar_one())


# ---- sessions -----------------------------------------------------------------------------------------


def test_the_cookie_is_for_this_server_and_no_script(url: str, key: str) -> None:
    def attributes(**headers: str) -> set[str]:
        answer = httpx.post(f"{url}/sign-in", data={"key": key}, headers=headers)
        return {each.strip().lower() for each in answer.headers["set-cookie"].split(";")[1:]}

    plain = attributes()
    assert plain == {"httponly", "samesite=lax", "path=/", "max-age=604800"}
    assert attributes(**{"X-Forwarded-Proto": "https"}) == plain | {"secure"}


def test_signing_in_never_adopts_a_secret_of_the_client(url: str, key: str, ledger: Ledger) -> None:
    with signed_in(url, key) as browser:
        name, first = cookie_of(browser)
    with ledger.transaction() as connection:
        link, other = (make_link(connection, key_id_of(connection)) for _ in range(2))
    # A key and a link are no session, and a session is no key
    for planted in ("planted", key, link):
        cookie = {"Cookie": f"{name}={planted}"}
        assert httpx.get(f"{url}/home", headers=cookie | BROWSER).status_code == 303
        # Whatever the client has, each session that begins has a new secret
        answer = httpx.post(f"{url}/sign-in", data={"key": key}, headers=cookie)
        assert answer.cookies[name] not in (planted, first)
    answer = httpx.get(
        f"{url}/sign-in", params={"link": other}, headers=BROWSER | {"Cookie": f"{name}={link}"}
    )
    assert answer.cookies[name] not in (link, other, first)
    assert httpx.get(f"{url}/v1/batches", headers={"Authorization": f"Bearer {first}"}).status_code == 401


def test_a_link_works_once_and_for_an_hour(url: str, key: str, ledger: Ledger) -> None:  # noqa: ARG001
    def answer_to(link: str) -> httpx.Response:
        return httpx.get(f"{url}/sign-in", params={"link": link}, headers=BROWSER)

    with ledger.transaction() as connection:
        used, old = (make_link(connection, key_id_of(connection)) for _ in range(2))
        [longest] = connection.execute(sa.select(sa.func.max(sessions.c.expires_at), db_now(3_601))).all()
        assert longest[0] < longest[1]
    assert answer_to(used).status_code == 303
    with ledger.transaction() as connection:
        connection.execute(sessions.update().where(sessions.c.is_link).values(expires_at=db_now(-1)))
    for link in (used, old, "guessed"):
        answer = answer_to(link)
        assert (answer.status_code, "set-cookie" in answer.headers) == (404, False)
        assert "used already, or has expired" in answer.text


@pytest.mark.parametrize("how", ["sign out", "revoke", "rotate", "expire"])
def test_a_session_ends(url: str, key: str, ledger: Ledger, how: str) -> None:
    with signed_in(url, key) as browser, signed_in(url, key) as other:
        name, secret = cookie_of(browser)
        if how == "sign out":
            assert browser.post("/sign-out", headers=token_of(browser)).status_code == 204
            assert name not in browser.cookies
            browser.cookies.set(name, secret, domain="127.0.0.1")
            assert not is_signed_in(browser)  # immediately, and the other goes on
            assert is_signed_in(other)
            return
        with ledger.transaction() as connection:
            if how == "revoke":
                revoke_key(connection, key_id_of(connection))
            elif how == "rotate":  # perhaps because somebody else has the old secret
                rotate_key(connection, key_id_of(connection))
            else:
                connection.execute(sessions.update().values(expires_at=db_now(-1)))
        until(lambda: not is_signed_in(browser) and not is_signed_in(other), "signed out", seconds=5)
        answer = browser.get("/jobs", params={"q": "a=b"})
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            "/sign-in?next=%2Fjobs%3Fq%3Da%253Db",
        )
        assert browser.get("/v1/batches").status_code == 401


# ---- headers ------------------------------------------------------------------------------------------


def test_no_page_can_be_framed_or_run_what_is_not_ours(url: str, key: str, harness: Harness) -> None:
    job_id = harness.submit(digits(2))
    harness.classify_all()
    run_id = new_id()
    with harness.ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe_for("mlp", "quick", seed=7).to_json())
    with httpx.Client(base_url=url, headers=BROWSER) as stranger, signed_in(url, key) as browser:
        own = page_paths(job_id=job_id, index="0", model_id=harness.model.id, run_id=run_id, dataset="mnist")
        answers = [browser.get(path) for path in [*own, "/nothing", f"/jobs/{new_id()}"]]
        answers += [stranger.get(path) for path in ("/sign-in", "/sign-in?link=x")]
        answers.append(stranger.post("/sign-in", data={"key": "wrong"}))
        for answer in answers:
            assert answer.headers["content-type"].startswith("text/html"), answer.url
            policy = dict(
                part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; ")
            )
            assert "unsafe" not in str(policy)
            assert (policy["default-src"], policy["frame-ancestors"], policy["base-uri"]) == ("'none'",) * 3
            assert (policy["script-src"], policy["style-src"], policy["form-action"]) == ("'self'",) * 3
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        image = browser.get(f"/v1/batches/{job_id}/images/0/thumbnail")
        assert image.headers["content-type"] == "image/webp"
        assert "Cookie" in image.headers["vary"]  # the next session in this browser asks again


# ---- roles and projects -------------------------------------------------------------------------------


def test_a_submitters_session_cannot_correct_promote_or_train(
    url: str, harness: Harness, ledger: Ledger
) -> None:
    job_id = harness.submit(digits(2))
    harness.classify_all()
    with ledger.transaction() as connection:
        _, key = create_key(connection, "submitter", Role.SUBMIT)
    with signed_in(url, key) as browser:
        token, before = token_of(browser), contents(ledger)
        refused = [each for each in unsafe_operations(browser, batch_id=job_id) if "submit" not in each[2]]
        for method, path, _ in refused:
            answer = browser.request(method, path, headers=token, json={})
            assert answer.status_code == 403, f"{method} {path}"
            assert "has the role submit" in answer.json()["detail"]
        for named in ("/label", "/corrections", "/promote", "/rollback", "/shadow", "/runs", "/webhooks"):
            assert any(named in path for _, path, _ in refused), named
        assert contents(ledger) == before
        assert browser.get("/review").status_code == 403
        for path in (f"/jobs/{job_id}/images", f"/jobs/{job_id}/images/0", "/models", "/runs"):
            for button in (
                "Correct</button>",
                "Save</button>",
                "Promote</button>",
                "Start a training</button>",
            ):
                assert button not in browser.get(path).text


def test_a_session_sees_nothing_of_another_project(
    url: str, key: str, harness: Harness, ledger: Ledger
) -> None:
    # Given a job of project A, and a session of project B that may do everything
    job_id = harness.submit(digits(2), key="monday's")
    harness.classify_all()
    with ledger.transaction() as connection:
        connection.execute(predictions.update().values(name=sa.literal("secret/") + predictions.c.name))
        add_batch(
            connection, job_id, request={"metadata": {"customer": "globex"}}, file_id=None, state="done"
        )
        create_project(connection, "birds")
        _, theirs = create_key(connection, "bird", Role.ADMIN, project="birds")

    def seen(browser: httpx.Client, path: str, name: str) -> tuple[int, str]:
        answer = browser.get(path)
        return answer.status_code, answer.text.replace(name, "ID")

    with signed_in(url, theirs) as stranger, signed_in(url, key) as owner:
        named = [path for path in PAGES if "{job_id}" in path] + [
            "/jobs/{job_id}/images/99",
            "/review?job={job_id}",
        ]
        assert len(named) >= 6
        for path in named:
            never = new_id()
            real, other = (path.format(job_id=each, index="0") for each in (job_id, never))
            # When it asks for a page about the job, then the answer is that for an id which nothing ever had
            assert seen(stranger, real, job_id) == seen(stranger, other, never), path
            assert stranger.get(real).status_code == 404
            assert path.endswith("99") or owner.get(real).status_code == 200, path
        # And no other page says anything about it
        searches = [f"/jobs?q={word}" for word in (job_id, job_id[:8], "monday's", "customer=globex")]
        things = {"model_id": harness.model.id, "run_id": "none", "dataset": "mnist"}
        pages = [path.format_map(things) for path in PAGES if "{job_id}" not in path]
        for path in [*pages, *searches, f"/jobs?after={job_id}"]:
            text = stranger.get(path).text.replace(f'value="{job_id}"', "")
            for secret in (job_id, "secret/", "globex", "monday"):
                assert secret not in text or secret in path, f"{path} shows {secret}"
        review = stranger.post(
            "/v1/review", json={"dataset": "mnist", "kind": "random"}, headers=token_of(stranger)
        )
        assert review.json()["data"] == []


# ---- hostile names ------------------------------------------------------------------------------------

HOSTILE: Final = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)" pwned="',
    "</title><script>alert(1)</script>",
    '" hx-on:load="alert(1)',
    "<!--",
    "{{ 7 * 191 }}{% raw %}",
    "javascript:alert(1)",
)


class Tags(HTMLParser):
    """Collects what in a page could run, or does not come from our templates."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_comment(self, data: str) -> None:
        self.found.append(f"a comment: {data}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name.startswith(("on", "hx-on", "style")) or name in ("srcdoc", "pwned"):
                self.found.append(f"{tag} {name}={value}")
            is_url = name in ("href", "src", "action", "formaction") and value
            if is_url and not str(value).startswith(("/", "#", "?", "data:image/")):
                self.found.append(f"{tag} {name}={value}")
        if tag == "script" and not (dict(attrs).get("src") or "").startswith("/static/"):
            self.found.append("a script")
        if tag in ("style", "iframe", "object", "embed", "base"):
            self.found.append(tag)

    handle_startendtag = handle_starttag


def test_hostile_names_are_only_text(url: str, store: Store, harness: Harness, ledger: Ledger) -> None:
    # Given hostile classes of a model, names, submission key and metadata of a job, and a key's name
    classes = tuple(each.replace("/", "\\") for each in HOSTILE)  # folders are compared with classes
    models = [register_digits(ledger, store, keras_file(b"%d" % n), classes=classes) for n in range(2)]
    job_id = hostile_job(harness, models[0], classes)
    truth = [n % 10 for n in range(50)]
    run_id = new_id()
    with ledger.transaction() as connection:
        point_alias(connection, CHAMPION, models[0].id)
        for model in models:
            answers = [(n + (model is models[0])) % 10 for n in truth]
            save_evaluation(
                connection, model.id, "ab" * 32, *made_evaluation(truth, answers, classes=classes)
            )
        request_run(connection, run_id, recipe=recipe_for("mlp", "quick", seed=7).to_json())
        words = {"state": "failed", "active": None, "verdict": HOSTILE[0], "error": HOSTILE[1]}
        connection.execute(training_runs.update().values(**words))
        _, key = create_key(connection, HOSTILE[0], Role.ADMIN)
    with signed_in(url, key) as browser:
        corrected = {"batch_id": job_id, "index": 0, "label": classes[3]}
        answer = browser.post("/v1/corrections", json={"corrections": [corrected]}, headers=token_of(browser))
        assert answer.status_code == 200, answer.text

        # When each page is read, filters and problems included
        things = {"job_id": job_id, "model_id": models[0].id, "run_id": run_id, "dataset": "mnist"}
        pages = [path.format_map(things | {"index": str(n)}) for path in PAGES for n in range(12)]
        pages += [f"/models/compare?first={models[0].id}&second={models[1].id}"]
        for each in HOSTILE:
            query = httpx.QueryParams({"q": each})
            pages += [
                f"/jobs?{query}",
                f"/review?job={query['q']}",
                f"/runs/{query['q'].replace('/', '%2F')}",
            ]
            pages += [
                f"/jobs/{job_id}/images?{httpx.QueryParams({name: each})}"
                for name in ("label", "truth", "name", "error")
            ]
            pages += [f"/sign-in?{httpx.QueryParams({'next': each})}"]
        texts = {path: browser.get(path).text for path in dict.fromkeys(pages)}
        with httpx.Client(base_url=url, headers=BROWSER) as stranger:
            for each in HOSTILE:
                query = str(httpx.QueryParams({"next": each, "link": each}))
                texts[f"/sign-in?{query}"] = stranger.get(f"/sign-in?{query}").text

    # Then the filters show the error that the URL names
    filtered = texts[f"/jobs/{job_id}/images?{httpx.QueryParams({'error': HOSTILE[1]})}"]
    assert f'<option value="{escape(HOSTILE[1])}" selected>' in filtered

    # Then no hostile text has become a part of the page
    for path, text in texts.items():
        tags = Tags()
        tags.feed(text)
        assert not tags.found, f"{path}: {tags.found}"
        for each in (*HOSTILE, *classes):
            if escape(each) != each:
                assert each not in text, f"{path} shows {each}"
        assert "1337" not in text
    # And each of them was shown somewhere, as text
    shown = "".join(texts.values()).replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    for each in (*HOSTILE, *classes):
        assert escape(each) in shown, each


def hostile_job(harness: Harness, model: Model, classes: tuple[str, ...]) -> str:
    """Add a job whose images have hostile labels, names and errors."""
    job_id = harness.submit(
        [*digits(10), *(each.encode() for each in HOSTILE[:2])], model=model, key=HOSTILE[0], top_k=3
    )
    harness.classify_all()
    with harness.ledger.transaction() as connection:
        for index in range(12):
            name = f"{classes[(index + index // 5) % 10]}/{HOSTILE[index % 10]}.png"
            row = (predictions.c.job_id == job_id) & (predictions.c.index == index)
            connection.execute(predictions.update().where(row).values(name=name))
        connection.execute(
            predictions.update().where(predictions.c.error.is_not(None)).values(detail=HOSTILE[2])
        )
        metadata = {"customer": HOSTILE[1], HOSTILE[2][:64]: HOSTILE[3]}
        add_batch(connection, job_id, request={"metadata": metadata}, file_id=None, state="done")
    return job_id


def test_hostile_text_in_images_never_runs(url: str, key: str, harness: Harness) -> None:
    # Given pictures with hostile metadata, the same with a page after their end, and pages without a picture
    hostile = "".join(HOSTILE)
    described = described_pictures(hostile)
    pictures = [*described, *(each + hostile.encode() for each in described)]
    pages = [f'<svg xmlns="http://www.w3.org/2000/svg">{hostile}</svg>'.encode(), f"<html>{hostile}".encode()]
    job_id = harness.submit([*pictures, *pages])
    harness.classify_all()
    with signed_in(url, key) as browser:
        for index, submitted in enumerate([*pictures, *pages]):
            path = f"/v1/batches/{job_id}/images/{index}"
            # When they are shown, then only their pixels are
            for size in ("small", "large"):
                answer = browser.get(f"{path}/thumbnail?size={size}")
                if index < len(pictures):
                    assert answer.headers["content-type"] == "image/webp"
                    with Image.open(BytesIO(answer.content), formats=["WEBP"]) as shown:
                        assert set(shown.info) <= {"loop", "background", "timestamp", "duration"}
                        assert not shown.getexif()
                else:
                    assert answer.status_code == 404
                assert b"alert(1)" not in answer.content
            tags = Tags()
            tags.feed(browser.get(f"/jobs/{job_id}/images/{index}").text)
            assert not tags.found
            # When they are downloaded, then no browser shows them
            answer = browser.get(path)
            assert answer.content == submitted
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"] == "attachment"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in answer.headers["content-security-policy"]


def described_pictures(text: str) -> list[bytes]:
    """Return a JPEG file and a PNG file with the text wherever a description may be."""
    picture = Image.new("RGB", (28, 28), "white")
    exif = Image.Exif()
    for tag in (Base.ImageDescription, Base.Artist, Base.UserComment):
        exif[tag] = text
    words = PngInfo()
    words.add_text("Comment", text)
    words.add_itxt("XML:com.adobe.xmp", text, zip=True)
    found = BytesIO(), BytesIO()
    picture.save(found[0], "JPEG", exif=exif, comment=text, icc_profile=text.encode())
    picture.save(found[1], "PNG", exif=exif, pnginfo=words, icc_profile=text.encode())
    return [each.getvalue() for each in found]
