"""The live page in a real Chromium: by keyboard alone, on a phone, in the dark, over a slow network."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_support import REFERENCE, Running, running

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"),
]
PAGES = ("/", "/page/versions", "/page/traffic", "/page/adapter/all", "/page/ask")
TAB, ENTER, SPACE = "\ue004", "\ue007", " "


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that promotes with the real command."""
    with running(Path(shutil.copytree(REFERENCE, tmp_path_factory.mktemp("live") / "hub")), log=True) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    found.set_page_load_timeout(60)
    yield found
    found.quit()


@pytest.fixture(autouse=True)
def _desktop(browser: Any) -> None:
    screen(browser, 1100, 900)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def screen(browser: Any, width: int, height: int, scheme: str = "light") -> None:
    shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    scheme_now = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_now)


def until(browser: Any, holds: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, browser.find_element("tag name", "body").text
        time.sleep(0.1)
    return found


def typed(browser: Any, *keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def focused(browser: Any) -> str:
    """What has the focus, in words; it must be seen."""
    script = """const it = document.activeElement, style = getComputedStyle(it);
        return [it.ariaLabel || it.innerText || it.id, style.outlineStyle, parseFloat(style.outlineWidth)]"""
    words, outline, width = browser.execute_script(script)
    assert outline != "none", words
    assert width >= 2, words
    return str(words).strip()


def tab_to(browser: Any, wanted: str) -> None:
    """Go on by Tab until something called so has the focus."""
    for _ in range(60):
        typed(browser, TAB)
        if focused(browser) == wanted:
            return
    raise AssertionError(f"Tab never came to {wanted}")


def text(browser: Any) -> str:
    return str(browser.execute_script("return document.querySelector('main')?.innerText || ''"))


def test_keyboard_alone(browser: Any, live: Running) -> None:
    browser.get(f"{live.url}/")
    typed(browser, TAB)
    assert focused(browser) == "Skip to the content"
    tab_to(browser, "Playground")
    typed(browser, ENTER)
    until(browser, lambda: browser.title == "Playground")
    tab_to(browser, "text")
    typed(browser, "they charged my card twice")
    tab_to(browser, "Ask")
    typed(browser, ENTER)
    until(browser, lambda: "answered by" in text(browser))
    assert "billing" in text(browser)
    assert browser.switch_to.active_element.get_attribute("id") == "answer", "a reader is taken to the answer"
    browser.get(f"{live.url}/page/versions")
    tab_to(browser, "tickets@v1")
    typed(browser, ENTER)
    until(browser, lambda: browser.title == "tickets")
    tab_to(browser, "Promote tickets@v1")
    typed(browser, ENTER)
    until(browser, lambda: browser.title == "Promote tickets@v1?")
    assert focused(browser) == "Promote it"
    typed(browser, ENTER)
    until(browser, lambda: "serves from the next batch on" in text(browser), 120)  # the script shows it when it is done
    assert "production" in live.hub.registry.get("tickets@v1").aliases


def test_without_a_script(browser: Any, live: Running) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{live.url}/page/adapter/reviews")
    browser.find_element("id", "alias").send_keys("seen")
    browser.find_element("xpath", "//button[.='Pin']").click()
    until(browser, lambda: browser.title == "Pin reviews@seen to v1?")
    browser.find_element("xpath", "//button[.='Pin it']").click()
    until(browser, lambda: "reviews@seen → reviews@v1" in text(browser))
    assert live.hub.registry.get("reviews@seen").version == 1
    assert not browser.find_element("id", "live-status").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser: Any, live: Running, scheme: str) -> None:
    screen(browser, 360, 740, scheme)
    for path in PAGES:
        browser.get(live.url + path)
        wide, high = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= high, f"{path} scrolls sideways"
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(16, 23, 30)")
        for button in browser.find_elements("css selector", "button"):
            assert button.size["height"] >= 24, path
    assert [row for row in browser.get_log("browser") if row["level"] == "SEVERE"] == []


def test_the_page_refreshes_itself_and_says_when_it_cannot(browser: Any, live: Running) -> None:
    browser.get(f"{live.url}/page/adapter/facts")
    live.hub.registry.set_alias("facts@v1", "by-another-process")
    until(browser, lambda: "by-another-process" in text(browser), 30)
    field = browser.find_element("id", "alias")
    field.send_keys("half-typed")
    live.hub.registry.set_alias("facts@v1", "once-more")
    until(browser, lambda: "once-more" in text(browser), 30)
    assert field.get_attribute("value") == "half-typed"
    browser.execute_cdp_cmd("Network.enable", {})
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", gone)
    until(browser, lambda: "does not answer" in browser.find_element("id", "live-status").text, 30)
    slow = {"offline": False, "latency": 800, "downloadThroughput": 20_000, "uploadThroughput": 20_000}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    until(browser, lambda: "does not answer" not in browser.find_element("id", "live-status").text, 40)
    browser.get(f"{live.url}/")
    assert "tickets@v1" in text(browser)
    fast = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", fast)
    browser.get_log("browser")  # it names the requests that found no network
