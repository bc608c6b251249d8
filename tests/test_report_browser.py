"""The report in a real browser: it opens from a file without a network, fits a phone, and its tables sort."""

import shutil

import pytest
from test_report import NASTY, judge, make_run, measured, row

from monai_anon.evaluation.reporting.report import write_report

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")

FIDS = {"ours": 10.5, "none": None, "blur": 100.25, "pixels": 9.0}
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium that has never been anywhere."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with three methods, one of them named to do harm, every figure and a picture."""
    folder = tmp_path_factory.mktemp("report")
    rows = judge(0.97) + measured() + measured("none") + measured(NASTY)
    rows += [row("fid", value, method=name) for name, value in FIDS.items()]
    run = make_run(folder / "run", rows)
    return write_report([run], folder / "page.html").path.as_uri()


@pytest.fixture
def page(browser, address):
    """The page as it was opened just now, on a desk."""
    screen(browser, 1200)
    browser.get_log("browser")
    browser.get(address)
    return browser


def screen(browser, width):
    size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_the_page_opens_without_an_error_or_a_request_and_runs_no_name(page):
    assert page.get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert page.execute_script("return document.querySelectorAll('img[src=x], script').length") == 1, "only its own"


def test_the_policy_of_the_page_stops_a_request_and_a_foreign_script(page):
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1'; document.body.append(s);"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);"
    )
    assert page.execute_script("return window.foreign === undefined")
    assert sum("Content Security Policy" in entry["message"] for entry in page.get_log("browser")) == 2


def test_every_picture_and_drawing_is_there(page):
    widths = page.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert widths == [8]
    drawn = page.execute_script(
        "return [...document.querySelectorAll('.drawing svg')]"
        ".map(s => [s.clientWidth, s.querySelectorAll('text').length])"
    )
    assert len(drawn) >= 3 and all(width > 300 and texts > 5 for width, texts in drawn)


def column(page, caption, number):
    script = (
        "const t = [...document.querySelectorAll('table')].find(t => t.caption.textContent === arguments[0]);"
        "return [...t.tBodies[0].rows].map(r => r.cells[arguments[1]].textContent)"
    )
    return page.execute_script(script, caption, number)


def column_of(page, caption, title):
    script = (
        "const t = [...document.querySelectorAll('table')].find(t => t.caption.textContent === arguments[0]);"
        "return [...t.tHead.rows[0].cells].findIndex(c => c.textContent === arguments[1])"
    )
    return page.execute_script(script, caption, title)


def click(page, caption, number):
    """Clicks a heading as the keyboard does, and gives its aria-sort."""
    script = (
        "const t = [...document.querySelectorAll('table')].find(t => t.caption.textContent === arguments[0]);"
        "return t.tHead.rows[0].cells[arguments[1]]"
    )
    head = page.execute_script(script, caption, number)
    button = head.find_element("tag name", "button")
    button.send_keys(webdriver.Keys.ENTER)
    return head.get_attribute("aria-sort")


def test_a_table_sorts_by_number_and_back_and_keeps_what_has_none_last(page):
    caption = "Similarity and realism"
    number = column_of(page, caption, "FID")
    assert click(page, caption, number) == "ascending"
    up = column(page, caption, number)
    assert up[:3] == ["9.000", "10.500", "100.250"] and set(up[3:]) == {"not measured", "-"}
    assert click(page, caption, number) == "descending"
    assert column(page, caption, number)[:3] == ["100.250", "10.500", "9.000"]
    assert set(column(page, caption, number)[3:]) == {"not measured", "-"}


def test_a_table_sorts_by_name_and_one_column_at_a_time(page):
    caption = "Static attack"
    assert column(page, caption, 0) == ["none", "ours", NASTY]
    click(page, caption, 1)
    click(page, caption, 0)
    assert column(page, caption, 0) == [NASTY, "none", "ours"]
    assert page.execute_script("return document.querySelectorAll('[aria-sort]').length") == 1


def test_the_filter_shows_only_lines_with_the_words(page):
    field = page.find_element("css selector", ".filter input")
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    field.send_keys("NEVER_heard")
    shown = page.execute_script(
        "return [...document.querySelector('[data-filter]').tBodies[0].rows]"
        ".filter(r => !r.hidden).map(r => r.innerText)"
    )
    assert len(shown) == 3 and all("never_heard_of" in line for line in shown)


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_the_page_never_scrolls_sideways(page, width):
    screen(page, width)
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    if width == 360:
        wide = "return [...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)"
        assert page.execute_script(wide), "tables scroll in their own container"


def test_print_opens_what_is_folded_and_leaves_out_what_only_a_screen_needs(page):
    shown = "return document.querySelector('details table').checkVisibility()"
    assert not page.execute_script(shown), "folded on a screen"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.execute_script(shown)
        assert page.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
        assert not page.execute_script("return document.querySelector('[data-filter]').checkVisibility()")
        assert "not printed" in page.find_element("css selector", ".printed").text
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_is_whole_without_javascript(page, address):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(address)
        assert page.find_elements("css selector", "th button") == []
        assert "0.617" in page.find_element("css selector", "#P1 table").text
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
