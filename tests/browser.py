"""A real browser: Debian's Chromium, which selenium drives. It reaches nothing but this machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    NoAlertPresentException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.console import is_alive, processes_below, until
from tests.programs import need_program, node_packages

__all__ = ["Browser", "Keys", "printed_pages", "started_browser"]

#: How long a page may take to show what a test waits for.
_SECONDS: Final = 30.0

_OPTIONS: Final = (
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)

#: A blocked script or style becomes an error in the console, even if Chromium does not show it there.
_SHOW_CSP_REPORTS: Final = """
document.addEventListener("securitypolicyviolation", (report) =>
  console.error(`CSP: ${report.violatedDirective} blocks ${report.blockedURI} in ${report.sourceFile}`));
"""

_AXE: Final = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then(
  (found) => done(found.violations.map((each) =>
    `${each.id}: ${each.help}: ` +
    each.nodes.map((node) => `${node.html} (${node.failureSummary})`).join("; "))),
  (error) => done([String(error)]));
"""


@contextlib.contextmanager
def _perhaps_replaced() -> Iterator[None]:
    """Leave the block if the page has just replaced an element, which the driver says in two ways."""
    try:
        yield
    except StaleElementReferenceException:
        pass
    except WebDriverException as error:
        if "does not belong to the document" not in str(error):
            raise


class Browser:
    """One tab. Each thing that a test looks for or clicks may appear within some seconds."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.url = ""  # of the server, without a path
        self._expected: list[str] = []
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _SHOW_CSP_REPORTS})

    # ---- pages ----------------------------------------------------------------------------------------

    def sign_in(self, url: str, key: str) -> None:
        """Sign in to this server with a key, as a person does. Any other session is forgotten."""
        self.url = url
        self.driver.get(f"{url}/static/icon.svg")
        self.driver.delete_all_cookies()
        self.open("/sign-in")
        self.find("#key").send_keys(key)
        self.click("button", "Sign in")
        self.until(lambda: self.path == "/home", "signed in")

    def open_printed(self, log: Path) -> None:
        """Open the address that `labelmill up` prints, which signs in once."""
        self.url, link = printed_pages(log)
        self.driver.get(link)
        self.until(lambda: self.path == "/home", "the address signs in")

    def open(self, path: str) -> None:
        """Open a page of the server."""
        self.driver.get(self.url + path)

    @property
    def path(self) -> str:
        """The path of the page, with its query."""
        return self.driver.current_url.removeprefix(self.url)

    @property
    def text(self) -> str:
        """The text that a person sees on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; `return` gives a value back."""
        return self.driver.execute_script(code, *arguments)

    # ---- elements -------------------------------------------------------------------------------------

    def find_all(self, css: str, text: str = "") -> list[WebElement]:
        """Return the visible elements that match now, and whose text contains `text`."""
        found = self.driver.find_elements(By.CSS_SELECTOR, css)
        with _perhaps_replaced():
            return [each for each in found if each.is_displayed() and text in each.text]
        return []

    def find(self, css: str, text: str = "") -> WebElement:
        """Return the first visible element that matches, when there is one."""
        found: list[WebElement] = []

        def look() -> bool:
            found[:] = self.find_all(css, text)
            return bool(found)

        self.until(look, f"an element {css!r} with the text {text!r}")
        return found[0]

    def click(self, css: str, text: str = "", *, hold: str | None = None) -> None:
        """Click an element, perhaps while a key is held."""

        def click() -> bool:
            with _perhaps_replaced():
                element = self.find(css, text)
                self.script("arguments[0].scrollIntoView({block: 'center'})", element)
                actions = ActionChains(self.driver)
                if hold is None:
                    element.click()
                else:
                    actions.key_down(hold).click(element).key_up(hold).perform()
                return True
            return False

        self.until(click, f"{css!r} with the text {text!r} is clicked")

    def drag(self, first: WebElement, last: WebElement) -> None:
        """Drag the mouse from one element to another."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", first)
        ActionChains(self.driver).click_and_hold(first).move_to_element(last).release().perform()

    def choose(self, css: str, option: str) -> None:
        """Choose an option of a list."""
        Select(self.find(css)).select_by_visible_text(option)

    def press(self, *keys: str) -> None:
        """Type keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def answer(self, question: str, *, yes: bool = True) -> None:
        """Answer a question that the page asks in a dialog; its words must contain `question`."""
        self.until(lambda: self._asked() is not None, f"the page asks {question!r}")
        alert = self.driver.switch_to.alert
        assert question in alert.text
        (alert.accept if yes else alert.dismiss)()

    def _asked(self) -> str | None:
        try:
            return self.driver.switch_to.alert.text
        except NoAlertPresentException:
            return None

    def until(self, condition: Callable[[], object], what: str, *, seconds: float = _SECONDS) -> None:
        """Wait until the condition is true."""
        until(condition, what, seconds=seconds)

    # ---- the look -------------------------------------------------------------------------------------

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page this size in pixels. Windows cannot be as narrow as telephones, but pages can."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def show_colours(self, scheme: str) -> None:
        """Show pages in the colours `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.script("return document.documentElement.scrollWidth - innerWidth"))

    def violations(self) -> list[str]:
        """Return what axe-core finds on the page that people with disabilities cannot use."""
        self.script((node_packages() / "axe-core/axe.min.js").read_text())
        return list(self.driver.execute_async_script(_AXE))

    # ---- the console ----------------------------------------------------------------------------------

    def expect_error(self, text: str) -> None:
        """Let this test end well although the console has errors that contain the text."""
        self._expected.append(text)

    def errors(self) -> list[str]:
        """Return the unexpected errors in the console since the last call, reports of CSP included."""
        found = [each["message"] for each in self.driver.get_log("browser") if each["level"] == "SEVERE"]
        return [each for each in found if not any(text in each for text in self._expected)]

    @contextlib.contextmanager
    def test(self) -> Iterator[Browser]:
        """Begin a test in a wide, light window; at its end, no error may be in the console."""
        self._expected.clear()
        self.driver.get("about:blank")
        self.errors()
        self.resize(1280)
        self.show_colours("light")
        yield self
        assert not self.errors()


def printed_pages(log: Path) -> tuple[str, str]:
    """Wait until `labelmill up` is up. Return the URL of its pages, and the address that signs in once."""
    until(lambda: "Ctrl-C stops" in log.read_text(), "the stack is up")
    found = re.search(r"pages +((http://[^/]+)/\S+)", log.read_text())
    assert found is not None
    return found[2], found[1]


@contextlib.contextmanager
def started_browser() -> Iterator[Browser]:
    """Start a browser with a profile of its own. All its processes end with it."""
    chromium = need_program("chromium", package="chromium")
    driver = need_program("chromedriver", package="chromium-driver")
    with tempfile.TemporaryDirectory(prefix="lm-", ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (*_OPTIONS, f"--user-data-dir={Path(folder) / 'profile'}"):
            options.add_argument(option)
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")  # Chromium has none for root
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(driver, env=os.environ | {"HOME": folder})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "localhost")  # where the driver is
            started = webdriver.Chrome(options=options, service=service)
        try:
            yield Browser(started)
        finally:
            processes = processes_below(service.process.pid)
            started.quit()
            for process in filter(is_alive, processes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
