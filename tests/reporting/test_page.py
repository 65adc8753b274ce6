"""Claims about the page as a reader meets it: opened in Chromium, driven by Playwright, with and without JavaScript.

Screenshots are left in build/screenshots.
"""

import re
from pathlib import Path

import pytest
from browsers import CHROMIUM, MISSING
from small_run import NASTY, fail, small_run

from r1track.core import config
from r1track.reporting import report

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: see extra `dev`")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
SHOTS = config.ROOT / "build" / "screenshots"
SECTIONS = ("summary", "scores", "sequences", "training", "general", "strips", "cost", "making")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of a small run that failed in two ways."""
    results, root = small_run(tmp_path_factory.mktemp("page"))
    fail(results, root, "grpo", {("Toy_Val_000002", 5): "held", ("Toy_Val_000004", 7): "clipped"})
    report.run(config.load(results / "config/report.json"), results, results / "report")
    return results / "report" / "index.html"


@pytest.fixture
def open_page(browser, page_file):
    """Opens the page; whatever it complains about, or asks of anything but its own file, fails the test."""
    pages, complaints = [], []

    def opened(width=1280, scheme="light", script=True):
        size = {"width": width, "height": 900}
        page = browser.new_page(viewport=size, color_scheme=scheme, java_script_enabled=script)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda sent: complaints.append(sent.url) if sent.url != page_file.as_uri() else None)
        page.goto(page_file.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert [text for text in complaints if not text.startswith("data:image/jpeg")] == []


def column(page, number):
    """What the rows of the first table of sequences that can be seen hold in a column, in their order."""
    rows = page.locator("#sequences tbody").first.locator("tr:visible")
    return [row.locator("th, td").nth(number).inner_text() for row in rows.all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_width(open_page, width, scheme):
    page = open_page(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"report-{width}-{scheme}.png", full_page=True)
    page.evaluate("document.querySelectorAll('details').forEach((box) => (box.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_with_everything_open(open_page, width, scheme):
    page = open_page(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((box) => (box.open = true))")
    audit = axe.Axe().run(page).response
    assert len(audit["passes"]) > 20
    serious = [fault for fault in audit["violations"] if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in serious] == []


def test_schemes_differ_and_text_keeps_its_contrast(open_page):
    """WCAG's contrast of body text, from the colours that the browser computed."""
    for scheme, dark in (("light", False), ("dark", True)):
        page = open_page(scheme=scheme)
        read = "(name) => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).map(Number)"
        ink, paper = (page.evaluate(read, name) for name in ("color", "backgroundColor"))

        def luminance(colour):
            shares = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
            return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), shares, strict=True))

        darker, lighter = sorted((luminance(ink), luminance(paper)))
        assert (luminance(paper) < luminance(ink)) == dark
        assert (lighter + 0.05) / (darker + 0.05) >= 7


@pytest.mark.parametrize("script", [True, False])
def test_every_section_can_be_read_with_and_without_javascript(open_page, script):
    page = open_page(script=script)
    for section in SECTIONS:
        assert len(page.locator(f"#{section}").inner_text().split()) > 20, section
    shown = page.locator("#strips figure:visible").count()
    assert shown == page.locator(".strip" if script else "#strips figure").count()
    assert page.locator("button, input").count() == 0 or script  # no control that does nothing
    assert page.locator("#sequences tbody tr:visible").count() == 5


def test_a_header_sorts_by_click_and_by_keyboard_and_says_how(open_page):
    page = open_page()
    head = page.locator("#sequences thead th").nth(5)
    before = column(page, 5)
    values = [float(text) for text in before]
    assert values == sorted(values, reverse=True)
    head.get_by_role("button").click()
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, 5) == before[::-1]
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 5) == before
    page.locator("#sequences thead button").first.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert column(page, 0) == [f"Toy_Val_{k:06d}" for k in (5, 4, 3, 2, 1)]


def test_durations_sort_by_their_length_and_the_sum_stays_last(open_page):
    page = open_page()
    button = page.locator("#cost thead button").nth(2)
    for order in (-1, 1):
        button.click()
        table = page.locator("#cost table").first
        values = [float(cell.get_attribute("data-value")) for cell in table.locator("tbody td:nth-child(3)").all()]
        texts = [cell.inner_text() for cell in table.locator("tbody td:nth-child(3)").all()]
        assert texts != sorted(texts, reverse=order < 0)  # minutes and seconds: the words have another order
        assert values == sorted(values, reverse=order < 0)
        assert table.locator("tr").last.inner_text().startswith("all\t")


def test_the_filter_keeps_the_rows_with_all_its_words_and_counts_them(open_page):
    page = open_page()
    box = page.get_by_role("searchbox", name="Filter").first
    box.fill("VAL 000003")
    assert column(page, 0) == ["Toy_Val_000003"]
    assert page.locator(".filter output").first.inner_text() == "1 of 5"
    box.fill("no such sequence")
    assert column(page, 0) == []
    box.fill("")
    assert page.locator(".filter output").first.inner_text() == "5 of 5"
    assert len(column(page, 0)) == 5


def test_curves_tell_their_values_under_the_pointer_and_by_arrow_keys(open_page):
    page = open_page()
    curve = page.locator("#training .plot").nth(1)  # after the held-out IoU; the reward at step k is k / 60
    values, slider = curve.locator(".values"), curve.get_by_role("slider")
    assert re.match(r"step 30\s*this step 0.5\s*mean of 10 0.425", values.inner_text())
    slider.focus()
    page.keyboard.press("Home")
    assert re.match(r"step 1\s*this step 0.01667\s*mean of 10 –", values.inner_text())
    page.keyboard.press("ArrowRight")
    assert values.inner_text().startswith("step 2")
    assert slider.get_attribute("aria-valuetext").startswith("2: this step 0.03333")
    curve.scroll_into_view_if_needed()
    area = curve.locator("svg").first.bounding_box()
    seen = []
    for share in (0.3, 0.6, 0.9):
        page.mouse.move(area["x"] + share * area["width"], area["y"] + area["height"] / 2)
        seen.append(int(re.match(r"step (\d+)", values.inner_text())[1]))
        rule = curve.locator(".rule").bounding_box()
        assert abs(rule["x"] + rule["width"] / 2 - area["x"] - share * area["width"]) < area["width"] / 30
    assert seen == sorted(set(seen))


def test_the_success_plot_tells_what_the_scores_say(open_page):
    page = open_page()
    values = page.locator("#scores .plot .values").inner_text()
    assert values.startswith("IoU threshold 0.5")
    row = page.locator("#scores tr.tuned").first.locator("td")
    assert abs(float(re.search(r"grpo ([\d.]+)", values)[1]) - float(row.nth(2).inner_text())) < 1e-3


def test_a_strip_steps_by_buttons_slider_and_arrow_keys_and_plays(open_page):
    page = open_page(390)
    strip = page.locator(".strip").first
    back, on, play = strip.get_by_role("button").all()
    caption, slider = strip.locator("figcaption:visible"), strip.get_by_role("slider")
    frames = page.locator(".strip").first.locator("figure").count()
    slider.focus()
    page.keyboard.press("Home")  # it opens where the models differ most
    first = caption.inner_text()
    assert caption.count() == 1
    on.click()
    second = caption.inner_text()
    assert second != first
    back.click()
    back.click()  # there is none before the first
    assert caption.inner_text() == first
    on.focus()
    page.keyboard.press("ArrowRight")
    assert caption.inner_text() == second
    page.keyboard.press("ArrowLeft")
    slider.focus()
    page.keyboard.press("End")
    assert strip.locator("figure").nth(frames - 1).is_visible()
    play.click()
    now = "document.querySelector('.strip figure:not([hidden])').innerText.trim()"
    page.wait_for_function(f"(text) => {now} === text", arg=second)
    play.click()
    assert play.inner_text() == "Play"


def test_a_strip_of_a_failure_opens_at_it_and_shows_the_answer_as_text(open_page):
    page = open_page()
    card = page.locator(".card", has=page.get_by_role("heading", name=re.compile("^held: Toy_Val_000002")))
    seen = card.locator("figcaption:visible").inner_text()
    assert seen.startswith("Frame 5,")
    assert "held" in seen
    assert NASTY in seen


def test_the_first_stop_of_the_tab_key_is_a_visible_way_to_the_summary(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline not in ("none", "")
    page.keyboard.press("Enter")
    assert page.url.endswith("#summary")


def test_print_shows_every_frame_and_no_control(open_page):
    page = open_page()
    page.emulate_media(media="print")
    assert page.locator(".controls:visible, .filter:visible, .values:visible, input:visible").count() == 0
    frames = page.locator(".strip figure")
    assert page.locator(".strip figure:visible").count() == frames.count()
    assert page.locator("#making pre").first.is_visible()
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "report-print.png", full_page=True)
    assert (SHOTS / "report-print.png").stat().st_size > 10_000


def test_the_page_is_one_file_of_a_few_hundred_kilobytes(page_file):
    assert Path(page_file).stat().st_size < 1_000_000
