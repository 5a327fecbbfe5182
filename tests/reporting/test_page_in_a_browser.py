"""The report in a real browser: it opens from disk, its slider and tables work, and it asks for nothing else."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install 'trm-ray[dev]'")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

Browser = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with a driver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    yield from watched(browser, page)


@pytest.fixture
def opened_text(browser: Browser, text_page: Path) -> Iterator[Browser]:
    yield from watched(browser, text_page)


def watched(browser: Browser, page: Path) -> Iterator[Browser]:
    """The report on a wide screen; whatever a test does with it, the browser has nothing to complain of."""
    look(browser, width=1200)
    browser.get_log("performance")
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("data:", page.as_uri()))] == []


def look(browser: Browser, width: int, scheme: str = "light", media: str = "screen") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def all_of(browser: Browser, selector: str) -> list[Any]:
    return [one for one in browser.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]


def words(browser: Browser, selector: str) -> list[str]:
    return [one.text for one in all_of(browser, selector)]


# ---- the gallery


def test_the_slider_moves_all_boards_by_depth(opened: Browser):
    slider = opened.find_element(By.CSS_SELECTOR, ".slider input")
    assert words(opened, "output") == ["after 1 of 6 H-cycles, segment 1"]
    assert words(opened, ".stage > p") == ["✗ 2 wrong", "✗ 2 wrong"]
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert words(opened, "output") == ["after 3 of 6 H-cycles, segment 1"]
    assert words(opened, ".stage > p") == ["✗ 2 wrong", "✓ solved"]
    slider.send_keys(Keys.END)
    assert words(opened, "output") == ["after 6 of 6 H-cycles, segment 2"]
    slider.send_keys(Keys.HOME)
    assert words(opened, ".stage > p") == ["✗ 2 wrong", "✗ 2 wrong"]


def test_a_wrong_cell_is_red_and_underlined_and_a_given_one_bold(opened: Browser):
    [wrong, *_] = opened.find_elements(By.CSS_SELECTOR, ".stage.now .wrong")
    red, green, blue = map(int, re.findall(r"\d+", wrong.value_of_css_property("fill"))[:3])
    assert red > 2 * max(green, blue)
    assert opened.find_elements(By.CSS_SELECTOR, ".stage.now .underline")
    assert {
        one.value_of_css_property("font-weight") for one in opened.find_elements(By.CSS_SELECTOR, ".stage.now .given")
    } == {"700"}


def test_the_slider_moves_the_colours_of_a_passage_by_depth(opened_text: Browser):
    slider = opened_text.find_element(By.CSS_SELECTOR, ".slider input")
    assert words(opened_text, ".stage > p:last-child") == ["3.250 bits per byte", "✗ 2 wrong, 3.250 bits per byte"]
    colours = []
    for _ in range(3):
        colours.append(all_of(opened_text, ".text .missed")[0].value_of_css_property("background-color"))
        slider.send_keys(Keys.ARROW_RIGHT)
    assert words(opened_text, ".stage > p:last-child")[1] == "✓ solved, 1.250 bits per byte"
    assert colours[0] == "rgba(0, 34, 78, 1)"
    assert len(set(colours)) == 2  # 8.5 bits, then 7.5 and 6.5 of one class


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_more_surprise_is_further_from_the_paper_and_every_colour_is_read(opened_text: Browser, scheme: str):
    """By the contrast of WCAG, which whoever tells no colours sees."""
    look(opened_text, 400, scheme)
    assert opened_text.execute_script("return document.documentElement.scrollWidth") <= 400

    def light(element: Any, key: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", element.value_of_css_property(key))[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    shown = all_of(opened_text, ".surprise span")[1:]  # the first has the paper's colour
    papers, inks = ([light(one, key) for one in shown] for key in ("background-color", "color"))
    assert papers == sorted(papers, reverse=scheme == "light")
    assert all(max(pair) / min(pair) >= 4.5 for pair in zip(papers, inks, strict=True))


# ---- tables


def column(browser: Browser, heading: str) -> list[str]:
    table = browser.find_element(By.CSS_SELECTOR, "#verdict table")
    headings = [re.sub(r"\s", "", one.text) for one in table.find_elements(By.TAG_NAME, "th")]
    number = headings.index(heading) + 1
    return [one.text for one in table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({number})")]


def test_a_table_is_sorted_by_a_click_and_by_a_key(opened: Browser):
    button = opened.find_element(By.XPATH, "//section[@id='verdict']//th/button[normalize-space()='Exact %']")
    best_first = column(opened, "Exact%")
    button.click()
    assert column(opened, "Exact%") == best_first[::-1]
    button.send_keys(Keys.ENTER)
    assert column(opened, "Exact%") == best_first
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"


def test_words_are_sorted_as_words(opened: Browser):
    opened.find_element(By.XPATH, "//section[@id='verdict']//th/button[normalize-space()='Scenario']").click()
    names = column(opened, "Scenario")
    assert names == sorted(names, key=str.lower)


# ---- how it looks


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_is_never_wider_than_the_screen(opened: Browser, width: int):
    look(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def test_in_the_dark_ink_and_paper_change_places_in_figures_too(opened: Browser):
    def brightness(selector: str, key: str) -> float:
        colour = opened.find_element(By.CSS_SELECTOR, selector).value_of_css_property(key)
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    seen = {}
    for scheme in ("light", "dark"):
        look(opened, 1200, scheme)
        seen[scheme] = [
            brightness("body", "background-color"),
            brightness("body", "color"),
            brightness(".plot text", "fill"),
        ]
    assert [value > 128 for value in seen["light"]] == [True, False, False]
    assert [value > 128 for value in seen["dark"]] == [False, True, True]


def test_on_paper_all_depths_stand_beside_each_other_and_nothing_slides(opened: Browser):
    look(opened, 800, media="print")
    assert words(opened, ".slider") == []
    assert words(opened, ".stage .depths") == ["after 1–6", "after 1–2", "after 3–6"]
    folded = "return [...document.querySelectorAll('details table')].map((table) => table.checkVisibility())"
    assert set(opened.execute_script(folded)) == {True}  # what is folded away on a screen
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert printed.startswith(b"%PDF-")
    assert len(printed) > 50_000
