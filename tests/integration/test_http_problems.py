"""What clients of the HTTP API read if a request is wrong: every reason, where their tools look for it."""

from __future__ import annotations

import json
import re
from typing import Final

import httpx
import openai
import pytest

from tests.programs import run_node
from tests.serving import openai_client

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


#: What a developer sees of a batch that does not exist, in OpenAI's client for JavaScript.
_MISSING: Final = """
import OpenAI from "openai"
const [baseURL, apiKey, batch] = process.argv.slice(1)
try {
  await new OpenAI({ baseURL, apiKey }).batches.retrieve(batch)
} catch ({ message, code, type }) {
  console.log(JSON.stringify([message, code, type]))
}
"""


def test_openais_client_shows_what_is_wrong(api: httpx.Client) -> None:
    url, key = str(api.base_url).removesuffix("/v1/"), api.headers["authorization"].split()[1]
    with openai_client(url, key) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.batches.retrieve("06h0w4r0rf0dkckt")
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            client.batches.list(limit=1_000)
    detail = "There is no batch '06h0w4r0rf0dkckt': `GET /v1/batches` lists them."
    assert str(missing.value) == f"Error code: 404 - {detail}"
    assert (missing.value.code, missing.value.type) == ("not_found", "invalid_request_error")
    assert "limit: Input should be less than or equal to 100" in str(invalid.value)
    assert invalid.value.param == "limit"

    # Its client for JavaScript shows the same
    shown = json.loads(run_node(_MISSING, f"{url}/v1", key, "06h0w4r0rf0dkckt"))
    assert shown == [f"404 {detail}", "not_found", "invalid_request_error"]

    # What other clients read (RFC 9457) says the same
    problem = api.get("/batches/06h0w4r0rf0dkckt").json()
    assert (problem["detail"], problem["status"], problem["code"]) == (detail, 404, "not_found")


def test_all_that_is_wrong_with_a_body_is_reported(api: httpx.Client) -> None:
    wanted = {"urls": ["a"], "priority": "high", "metadata": {"album": 7}, "colour": "red"}
    problem = api.post("/batches", json=wanted).json()
    assert [each["param"] for each in problem["errors"]] == ["urls.0", "metadata.album", "priority", "colour"]
    assert all(f"{each['param']}: {each['detail']}" in problem["detail"] for each in problem["errors"])
    # Up to a limit
    many = api.post("/batches", json={"urls": ["a"] * 5_000}).json()
    assert len(many["errors"]) == 20
    assert many["detail"].endswith("; and 4,980 more")


def test_no_call_ignores_an_unknown_parameter(api: httpx.Client) -> None:
    # Given all calls that are described
    described = api.get(str(api.base_url.join("/openapi.json"))).json()
    for path, operations in described["paths"].items():
        url = api.base_url.join(re.sub(r"\{\w+\}", "1", path))
        for method, operation in operations.items():
            # When a parameter is added that they do not have
            answer = api.request(method, url, params={"nonsense": "1"}, json={})
            # Then they say so, and what there is
            assert answer.status_code == 422, f"{method} {path}"
            known = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
            if method != "head":
                assert answer.json()["error"]["param"] == "nonsense", f"{method} {path}"
                assert all(name in answer.json()["detail"] for name in known), f"{method} {path}"


@pytest.mark.parametrize("path", ["/files", "/classifications"])
def test_no_form_has_an_unknown_field(api: httpx.Client, path: str) -> None:
    form = {"purpose": "batch"} if path == "/files" else {}
    files = {"file": ("a.png", b"an image")}
    answer = api.post(path, data=form | {"nonsense": "1"}, files=files)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["detail"].startswith("nonsense: there is no such field: choose from file")
