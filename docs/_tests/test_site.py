"""The built site, driven in headless Chromium: ``make docs-test``. It needs Debian's chromium and chromium-driver.

Set ``DOCS_SCREENSHOTS`` to a folder to keep a picture of every page.
"""

from __future__ import annotations

import functools
import html.parser
import http.server
import os
import shutil
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SITE = Path(__file__).parents[2] / "build" / "docs"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SCREENSHOTS = os.environ.get("DOCS_SCREENSHOTS")

# What a reader could stumble over, as a list of sentences.
LOOK = """
const problems = [], width = window.innerWidth;
if (document.documentElement.scrollWidth > width + 1) {
  const wide = [...document.querySelectorAll('article *')].filter(e => {
    if (e.getBoundingClientRect().right <= width + 1) return false;
    for (let p = e.parentElement; p; p = p.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
    return true;
  });
  problems.push('wider than the screen: ' + wide.slice(0, 3).map(e => e.tagName + ' ' + e.textContent.slice(0, 60)));
}
for (const image of document.querySelectorAll('article img'))
  if (!image.naturalWidth) problems.push('image not loaded: ' + image.src);
for (const error of document.querySelectorAll('mjx-merror'))
  problems.push('mathematics not understood: ' + error.textContent);
for (const entry of performance.getEntriesByType('resource'))
  if (!entry.name.startsWith(location.origin)) problems.push('loads from elsewhere: ' + entry.name);
return problems;
"""

# The contrast of text and background, at least 4.5 by WCAG AA, of a few kinds of elements.
CONTRAST = """
const rgba = text => text.match(/[\\d.]+/g).map(Number);
const luminance = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const background = e => {
  for (; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.9) return c;
  }
  return [255, 255, 255];
};
const poor = [];
for (const selector of ['h1', 'p', 'td', 'a.reference', 'code', 'pre']) {
  const e = document.querySelector('article ' + selector);
  if (!e) continue;
  const [a, b] = [luminance(rgba(getComputedStyle(e).color)), luminance(background(e))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) poor.push(selector + ' ' + contrast.toFixed(2));
}
return [poor, luminance(background(document.body))];
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A server of the built site on this machine."""
    handler = functools.partial(QuietHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "expected chromium and chromedriver: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def set_size(browser: webdriver.Chrome, size: str) -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def open_page(browser: webdriver.Chrome, url: str) -> None:
    """Load a page, and wait for its mathematics and images."""
    browser.get_log("browser")  # drops what earlier pages wrote
    browser.get(url)
    browser.execute_script("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    browser.execute_async_script(
        "const done = arguments[0];"
        "const images = [...document.images].map(i => i.decode().catch(() => null));"
        "const math = window.MathJax && MathJax.startup ? MathJax.startup.promise : null;"
        "Promise.all([...images, math]).then(() => done());"
    )


def keep_picture(browser: webdriver.Chrome, page: str, size: str, theme: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(SCREENSHOTS, f"{page.replace('/', '-')}-{size}-{theme}.png")))


def test_the_site_is_built() -> None:
    expected = {"index.html", "faq.html", "search.html", "reference/smooth_ap.html"}
    assert expected | {"tutorials/fraud.html", "tutorials/retrieval.html"} <= set(PAGES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, size: str, browser: webdriver.Chrome, address: str) -> None:
    set_size(browser, size)
    open_page(browser, f"{address}/{page}")
    assert browser.execute_script(LOOK) == []
    for theme in ("light", "dark"):
        browser.execute_script(f"document.body.dataset.theme = '{theme}'")
        keep_picture(browser, page, size, theme)
        poor, luminance = browser.execute_script(CONTRAST)
        assert poor == [], theme
        assert (luminance < 0.1) == (theme == "dark")
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


class Links(html.parser.HTMLParser):
    """Collects the links and anchors of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed((SITE / page).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep addresses and ids."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in {("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")} and value:
                self.targets.append(value)


@pytest.fixture(scope="session")
def links() -> dict[str, Links]:
    return {page: Links(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_no_dead_link(page: str, links: dict[str, Links]) -> None:
    dead = []
    for target in links[page].targets:
        parts = urllib.parse.urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (SITE / page).parent / urllib.parse.unquote(parts.path) if parts.path else SITE / page
        linked = file.resolve().relative_to(SITE).as_posix()
        anchors = links[linked].anchors if linked in links else {parts.fragment}
        if not file.is_file() or (parts.fragment and urllib.parse.unquote(parts.fragment) not in anchors):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("SmoothAPLoss", "reference/smooth_ap.html"),
        ("for_alert_budget", "reference/thresholds.html"),
        ("staleness", "explanations/queue.html"),
        ("resumed run", "faq.html"),
    ],
)
def test_search(words: str, page: str, scheme: str, browser: webdriver.Chrome, address: str) -> None:
    """Search works from a server and from the files alone."""
    set_size(browser, "desktop")
    base = address if scheme == "http" else SITE.as_uri()
    browser.get(f"{base}/search.html?q={urllib.parse.quote(words)}")

    def found(driver: webdriver.Chrome) -> bool:
        results = driver.find_elements(By.CSS_SELECTOR, "#search-results ul.search a")
        return any(f"/{page}" in (result.get_attribute("href") or "") for result in results)

    WebDriverWait(browser, 20).until(found)


def test_navigation_reaches_every_page(links: dict[str, Links]) -> None:
    """The sidebar of the start page links each page, but those that Sphinx makes."""
    reached = {urllib.parse.urlsplit(target).path for target in links["index.html"].targets} | {"index.html"}
    assert set(PAGES) - reached <= {"genindex.html", "search.html"}
