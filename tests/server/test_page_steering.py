"""Steering from the page: who may, what is asked back, and what happens."""

from __future__ import annotations

import html
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from server_support import REFERENCE, Running, running

from adapterhub_cl.server.api_keys import add_key

STUB = Path(__file__).with_name("stub_promoting.py")


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, httpx2.Client]]]:
    """A server with keys, and a browser of each role."""
    place = tmp_path_factory.mktemp("steered")
    folder = shutil.copytree(REFERENCE, place / "hub")
    keys = {role: add_key(place / "keys.json", role, role) for role in ("read", "ask", "steer")}
    command = [sys.executable, str(STUB), "--hub", str(folder), "--json"]
    with running(folder, train=command, keys=str(place / "keys.json")) as found:
        browsers = {r: httpx2.Client(base_url=found.url, auth=(r, key), timeout=60) for r, key in keys.items()}
        yield found, browsers
        for browser in browsers.values():
            browser.close()


def fields_of(page: str, words: str) -> dict[str, str]:
    """The hidden fields of the form that contains these words."""
    (form,) = [one for one in re.findall(r"<form.*?</form>", page, re.DOTALL) if words in one]
    found = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found}


def token_of(browser: httpx2.Client, adapter: str = "tickets") -> str:
    return fields_of(browser.get(f"/page/adapter/{adapter}").text, 'value="pin"')["token"]


def asked(browser: httpx2.Client, action: str, ref: str, alias: str = "") -> httpx2.Response:
    """The page that asks back."""
    form = {"action": action, "ref": ref, "alias": alias, "token": token_of(browser)}
    return browser.post("/page/steer", data=form)


def done(browser: httpx2.Client, confirm: httpx2.Response, state: str = "done") -> str:
    """Confirm, and wait until the outcome is there."""
    assert confirm.status_code == 200, confirm.text
    answer = browser.post("/page/steer/do", data=fields_of(confirm.text, "/page/steer/do"))
    assert answer.status_code == 303, answer.text
    until = time.monotonic() + 60
    while "running</span>" in (page := browser.get(answer.headers["location"])).text:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert f">{state}</span>" in page.text
    return html.unescape(page.text)


def said_by_gate(found: Running, word: str) -> None:
    (found.hub.folder.parent / "gate.txt").write_text(word)


Steered = tuple[Running, dict[str, httpx2.Client]]


def test_pin_and_pin_again(steered: Steered) -> None:
    found, browser = steered[0], steered[1]["steer"]
    assert "tickets@stable → tickets@v1" in done(browser, asked(browser, "pin", "tickets@v1", "stable"))
    assert found.hub.registry.get("tickets@stable").version == 1
    again = asked(browser, "pin", "tickets@v1", "stable")
    assert again.status_code == 400
    assert "already" in again.text
    assert "stable" in browser.get("/page/adapter/tickets").text, "what was changed is seen at once"


def test_a_promotion_that_the_gate_refuses_or_that_fails(steered: Steered) -> None:
    found, browser = steered[0], steered[1]["steer"]
    before = found.hub.registry.serving()
    said_by_gate(found, "refuse")
    refused = done(browser, asked(browser, "promote", "all@v2"), "refused")
    assert "All@v2 forgets reviews <b>" in refused
    assert "cl-adapter promote all@v2 --max-forgetting 1" in refused, "without the folder of the hub"
    assert found.hub.registry.serving() == before
    said_by_gate(found, "crash")
    crashed = done(browser, asked(browser, "promote", "all@v2"), "refused")
    assert "the server's log says why" in crashed
    assert str(found.hub.folder) not in crashed
    assert found.hub.registry.serving() == before


def test_promote_through_the_gate_and_roll_back(steered: Steered) -> None:
    found, browser = steered[0], steered[1]["steer"]
    before = found.hub.registry.serving()
    said_by_gate(found, "")
    confirm = asked(browser, "promote", "all@v2")
    assert "tickets: tickets@v1 → all@v2" in html.unescape(confirm.text)
    assert "gate passed" in done(browser, confirm)
    assert set(found.hub.registry.serving().values()) == {"all@v2"}
    assert asked(browser, "promote", "all@v2").status_code == 400, "it is so already"
    assert "all@v2 →" in done(browser, asked(browser, "roll-back", "all"))
    assert found.hub.registry.serving() == before


def test_one_promotion_at_a_time(steered: Steered) -> None:
    found, browser = steered[0], steered[1]["steer"]
    said_by_gate(found, "wait")
    first, second = asked(browser, "promote", "all@v2"), asked(browser, "promote", "all@v1")
    running_one = browser.post("/page/steer/do", data=fields_of(first.text, "/page/steer/do"))
    page = browser.get(running_one.headers["location"]).text
    assert "running</span>" in page
    assert "Look again" in page
    refused = browser.post("/page/steer/do", data=fields_of(second.text, "/page/steer/do"))
    assert refused.status_code == 400
    assert "Another promotion is running" in refused.text
    found.server.config.app.app.state.steering.stop()  # type: ignore[union-attr]  # as at the end of the server
    until = time.monotonic() + 30
    while "running</span>" in browser.get(running_one.headers["location"]).text:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "Nothing was changed" in browser.get(running_one.headers["location"]).text
    found.server.config.app.app.state.steering._stopping = False  # type: ignore[union-attr]


def test_what_has_changed_since_is_asked_again(steered: Steered) -> None:
    found, browser = steered[0], steered[1]["steer"]
    confirm = asked(browser, "pin", "reviews@v1", "seen")
    found.hub.registry.set_alias("reviews@v1", "other")
    late = browser.post("/page/steer/do", data=fields_of(confirm.text, "/page/steer/do"))
    assert late.status_code == 409
    assert "seen" not in found.hub.registry.aliases()["reviews"]
    sent = fields_of(asked(browser, "pin", "reviews@v1", "seen").text, "/page/steer/do")
    assert browser.post("/page/steer/do", data={**sent, "alias": "elsewhere"}).status_code == 409
    assert browser.post("/page/steer/do", data=sent).status_code == 303
    assert browser.post("/page/steer/do", data=sent).status_code == 400, "it is so already"


@pytest.mark.parametrize(
    ("action", "ref", "alias", "status"),
    [
        ("promote", "nothing@v1", "", 404),
        ("promote", "tickets", "", 400),
        ("promote", "../tickets@v1", "", 400),
        ("roll-back", "tickets@v1", "", 400),
        ("end-canary", "tickets", "", 400),
        ("pin", "tickets@v1", "production", 400),
        ("pin", "tickets@v1", "v3", 400),
        ("pin", "tickets@v1", "<script>", 400),
        ("pin", "tickets@v9", "stable", 404),
        ("delete", "tickets@v1", "", 404),
        ("", "", "", 404),
    ],
)
def test_what_cannot_be_done(steered: Steered, action: str, ref: str, alias: str, status: int) -> None:
    answer = asked(steered[1]["steer"], action, ref, alias)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script>" not in answer.text


def test_roles(steered: Steered) -> None:
    found, browsers = steered
    for path in ("/", "/page/versions", "/page/adapter/tickets", "/page/outcome/x", "/page/live.js"):
        refused = httpx2.get(f"{found.url}{path}")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic")
        assert "tickets" not in refused.text
        assert browsers["read"].get(path).status_code in (200, 404)
    assert httpx2.post(f"{found.url}/page/steer/do").status_code == 401
    form = {"text": "", "model": "auto"}
    assert browsers["read"].post("/page/ask", data=form).status_code == 403
    assert browsers["ask"].post("/page/ask", data=form).status_code == 400, "the text is empty"
    good = {"action": "pin", "ref": "tickets@v1", "alias": "x", "token": token_of(browsers["steer"])}
    for role in ("read", "ask"):
        assert browsers[role].post("/page/steer", data=good).status_code == 403
        assert browsers[role].post("/page/steer/do", data=good).status_code == 403
    assert browsers["steer"].get("/v1/models").status_code == 401, "a password is for the page alone"
    assert browsers["steer"].get("/page").status_code == 401


def test_other_sites_and_tokens(steered: Steered) -> None:
    found, browser = steered[0], steered[1]["steer"]
    good = {"action": "pin", "ref": "tickets@v1", "alias": "x", "token": token_of(browser)}
    for origin in ("https://example.org", "null", f"{found.url}1"):
        for path in ("/page/steer", "/page/steer/do", "/page/ask"):
            assert browser.post(path, data=good, headers={"origin": origin}).status_code == 403
    assert browser.post("/page/steer", data=good, headers={"origin": found.url}).status_code == 200
    for token in ("", "x", "0" * 64, "é", good["token"]):
        answer = browser.post("/page/steer/do", data={**good, "token": token})
        assert answer.status_code == 409, "the token of the first form is not that of the plan"
    assert browser.post("/page/steer", data={**good, "token": "x"}).status_code == 409
    assert browser.get("/page/steer").status_code == 405
    assert "x" not in found.hub.registry.aliases()["tickets"]


def test_without_keys_another_host_name_is_refused(served: Running) -> None:
    """A name that an attacker makes lead to this machine has the attacker's origin and host alike."""
    headers = {"host": "evil.example:80", "origin": "http://evil.example:80"}
    paths = [
        *(("GET", path) for path in ("/", "/page/traffic", "/v1/files/file-1/content", "/v1/models", "/metrics")),
        *(("POST", path) for path in ("/page/steer", "/page/ask", "/v1/feedback", "/v1/chat/completions")),
        ("POST", "/v1/fine_tuning/jobs"),
        ("DELETE", "/v1/files/file-1"),
    ]
    for method, path in paths:
        answer = httpx2.request(method, f"{served.url}{path}", headers=headers)
        assert answer.status_code == 403, path
        assert "localhost" in answer.text
        del headers["origin"]  # which a page leaves out where it reads
        assert httpx2.request(method, f"{served.url}{path}", headers=headers).status_code == 403, path
        headers["origin"] = "http://evil.example:80"
    assert httpx2.get(f"{served.url}/health/live", headers=headers).status_code == 200
    assert httpx2.get(f"{served.url}/v1/models", headers={"host": "localhost:80"}).status_code == 200


def test_the_playground(served: Running) -> None:
    asked_for = {"text": "they charged my card\r\ntwice", "model": ""}
    page = httpx2.post(f"{served.url}/page/ask", data=asked_for).text
    for told in ("tickets@v1", "billing", "Nearest samples", "familiarity", "SHA-256"):
        assert told in page
    for form, status in (({"text": ""}, 400), ({"text": "x", "model": "nothing"}, 404), ({"model": "auto"}, 400)):
        answer = httpx2.post(f"{served.url}/page/ask", data=form)
        assert answer.status_code == status
        assert "Not answered." in answer.text
        assert 'name="text"' in answer.text, "the form is there to try again"
    assert httpx2.get(f"{served.url}/page/nothing").headers["content-type"].startswith("text/html")
