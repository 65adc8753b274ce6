"""Claims about the page of `r1track play`: driven in Chromium as a person does, and asked as a hostile page would.

One server, a process of its own with the tiny model, serves all tests. Screenshots are left in build/screenshots.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from toys import toy_split

from r1track.core import config
from r1track.core.sequences import read_split
from r1track.tracking import video

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: see extra `dev`")
SHOTS = config.ROOT / "build" / "screenshots"
NASTY = "../../../<img src=x onerror=alert(1)>.mp4"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return read_split(toy_split(tmp_path_factory.mktemp("toy") / "val", sequences=1, length=10))[0]


class Served(NamedTuple):
    """The address of the page, and the folder below which its temporary one lies."""

    url: str
    folder: Path


@pytest.fixture(scope="module")
def movie(clip, tmp_path_factory):
    """The clip as a video file."""
    return encode(clip.frames[0].parent, len(clip.frames), tmp_path_factory.mktemp("movie") / "clip.mp4")


def encode(frames, count, out):
    for _ in video.draw({}, count, frames, out):
        pass
    return out


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The command, with the tiny model. At the end Ctrl-C must end it, with status 0, no words and nothing left."""
    folder, file = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text("preset: demo\n")
    command = [sys.executable, "-m", "r1track", "play", "--model", "tiny", "--config", str(file), "--port", "0"]
    place = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "200"}
    with subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(lines))
        yield Served(found[0], folder)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "")
    assert list(folder.iterdir()) == []


@pytest.fixture
def open_page(browser, server):
    """Opens the page; what it complains about, and what it asks of any other server, fails the test."""
    pages, complaints = [], []

    def opened(width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda sent: complaints.append(sent.url) if not sent.url.startswith(server.url) else None)
        page.goto(server.url)
        page.wait_for_load_state("networkidle")
        if page.locator("#other").is_visible():  # the clip of the test before
            page.locator("#other").click()
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert [text for text in complaints if text != "data:,"] == []


def choose(page, place):
    """Give a video or a folder to the page and wait until it is read."""
    page.locator("#folder-files" if place.is_dir() else "#video-file").set_input_files(place)
    page.locator("#status", has_text="Draw a box").wait_for()


def drag(page, box):
    """Draw a box x, y, w, h, in pixels of the frame, with the mouse; the box that the page then has."""
    area = page.locator("#stage").bounding_box()
    x, y, w, h = (value * area["width"] / 192 for value in box)
    page.mouse.move(area["x"] + x, area["y"] + y)
    page.mouse.down()
    page.mouse.move(area["x"] + x + w / 2, area["y"] + y + h / 2)
    page.mouse.move(area["x"] + x + w, area["y"] + y + h)
    page.mouse.up()
    return sides(page)


def sides(page):
    return [float(page.locator(f"#{side}").input_value()) for side in "xywh"]


def finish(page):
    page.locator("#status", has_text="Done.").wait_for()


def download(page, button):
    with page.expect_download() as waiting:
        page.locator(button).click()
    return waiting.value.path().read_bytes()


def by_command(source, start, folder):
    """The table and the frames of the video that `r1track video` writes for the same start."""
    video.run(config.resolve({}), source, "tiny", folder / "out.mp4", start, None)
    return (folder / "out.csv").read_bytes(), pixels(folder / "out.mp4")


def pixels(movie):
    return np.stack([np.asarray(frame, dtype=float) for frame, _ in video.frames(movie)])


def test_a_dragged_box_is_tracked_corrected_and_taken_away(open_page, clip, movie, tmp_path):
    page = open_page()
    choose(page, movie)
    first = clip.boxes[0].round().tolist()
    box = drag(page, first)
    assert box == pytest.approx(first, abs=1)
    page.locator("#go").click()
    finish(page)
    table, drawn = by_command(movie, box, tmp_path)
    assert download(page, "#get-boxes") == table
    (tmp_path / "page.mp4").write_bytes(download(page, "#get-video"))
    shown = pixels(tmp_path / "page.mp4")
    assert shown.shape == drawn.shape
    # x264 encodes the same frames in other bytes from time to time: up to 1 of 255 apart. Boxes 3 pixels away make 3.
    assert np.abs(shown - drawn).mean((1, 2, 3)).max() < 2
    page.locator("#slider").fill("6")
    assert page.locator("#place").inner_text().startswith("Frame 7 of 10: found")
    corrected = drag(page, (20, 30, 40, 50))
    assert page.locator("#go").inner_text() == "Go on from here"
    page.locator("#go").click()
    finish(page)
    rows, before = (text.decode().splitlines() for text in (download(page, "#get-boxes"), table))
    assert rows[:7] == before[:7]  # what came before the corrected frame stays
    assert rows[7] == f"7,{','.join(f'{v:.3f}' for v in corrected)},init"
    assert len(rows) == 11
    assert rows[8] != before[8]
    page.reload()
    page.locator("#work").wait_for()
    assert download(page, "#get-boxes").decode().splitlines() == rows  # the server still has it


def test_frames_of_a_folder_are_tracked_from_a_description(open_page, clip, tmp_path):
    """They come in the order of their numbers, whatever their names sort to."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, path in enumerate(clip.frames, 5):
        shutil.copy(path, folder / f"{number}.jpg")
    (folder / "notes.txt").write_text("no frame")
    page = open_page()
    choose(page, folder)
    page.locator("#text").fill(clip.text)
    page.locator("#text").press("Enter")
    finish(page)
    assert download(page, "#get-boxes") == by_command(folder, clip.text, tmp_path)[0]
    page.locator("#slider").fill("0")
    page.locator("#text").fill("no such thing, nor any other")
    page.locator("#find").click()
    page.locator("#status.error, #status:has-text('Done.')").wait_for()


def test_a_folder_that_is_dropped_is_read(open_page, clip):
    page = open_page()
    data = {"items": [], "files": [str(clip.frames[0].parent)], "dragOperationsMask": 1}
    driver = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        driver.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})
    page.locator("#status", has_text="10 frames of 192 × 144 pixels. Draw a box").wait_for()


def test_the_keyboard_alone_draws_a_box_and_tracks(open_page, movie):
    page = open_page()
    choose(page, movie)
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "stage":
            break
        page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("ArrowRight")
    start = sides(page)
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown", "Shift+ArrowDown"):
        page.keyboard.press(key)
    box = sides(page)
    assert [after - before for after, before in zip(box, start, strict=True)] == [-4, -2, 2, 4]
    page.keyboard.press("Enter")
    finish(page)
    assert download(page, "#get-boxes").splitlines()[1].decode() == f"1,{','.join(f'{v:.3f}' for v in box)},init"


def test_work_that_is_stopped_leaves_what_is_done_and_can_go_on(open_page, clip, tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(400):
        shutil.copy(clip.frames[number % 10], tmp_path / "frames" / f"{number}.jpg")
    page = open_page()
    choose(page, encode(tmp_path / "frames", 400, tmp_path / "long.mp4"))
    drag(page, clip.boxes[0])
    page.locator("#go").click()
    page.locator("#count", has_text=re.compile(r"frame \d\d of 400")).wait_for()
    page.locator("#stop").click()
    page.locator("#status", has_text="Stopped.").wait_for()
    rows = len(download(page, "#get-boxes").splitlines()) - 1
    assert 5 <= rows < 400
    page.locator("#slider").fill("398")
    drag(page, clip.boxes[8])
    page.locator("#go").click()
    finish(page)
    numbers = [int(row.split(b",")[0]) for row in download(page, "#get-boxes").splitlines()[1:]]
    assert numbers[-2:] == [399, 400]
    assert numbers[:-2] == [*range(1, len(numbers) - 1)]  # a frame without a box has no row
    assert len(numbers) < 400
    page.locator("#slider").fill("0")
    page.locator("#go").click()
    page.locator("#count", has_text=re.compile(r"frame \d\d of 400")).wait_for()
    page.locator("#stop").click()
    page.locator("#status", has_text="Stopped.").wait_for()
    numbers = [int(row.split(b",")[0]) for row in download(page, "#get-boxes").splitlines()[1:]]
    assert numbers == [*range(1, len(numbers) + 1)]  # boxes after the new start are forgotten
    assert len(numbers) < 398


def test_a_broken_video_of_a_hostile_name_is_named_in_plain_words(open_page, server):
    page = open_page()
    page.locator("#video-file").set_input_files({"name": NASTY, "mimeType": "video/mp4", "buffer": b"no video"})
    status = page.locator("#status.error")
    status.wait_for()
    assert re.fullmatch(
        re.escape(NASTY) + r": cannot be decoded \(.+\); give a whole video or a folder",
        status.inner_text(),
    )
    assert page.locator("#status img").count() == 0
    assert page.locator("#pick-video").is_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_the_page_fits_its_width(open_page, clip, movie, width, scheme):
    page = open_page(width, scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    for name in ("start", "work"):
        if name == "work":
            choose(page, movie)
            page.locator("#stage").scroll_into_view_if_needed()
            drag(page, clip.boxes[0])
            page.locator("#go").click()
            finish(page)
            page.locator("#slider").fill("4")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SHOTS / f"play-{name}-{width}-{scheme}.png", full_page=True)
        audit = axe.Axe().run(page).response
        assert len(audit["passes"]) > 10
        serious = [fault for fault in audit["violations"] if fault["impact"] in ("serious", "critical")]
        assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in serious] == []


def ask(server, path, data=None, **headers):
    """Status and body of a request by something that is no browser, so that it can lie in every header."""
    request = urllib.request.Request(
        server.url + path, data, {k.replace("_", "-").title(): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_other_hosts_and_other_pages_are_refused(server):
    port = int(server.url.rpartition(":")[2])
    assert ask(server, "/")[0] == ask(server, "/", host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert ask(server, "/state", host=host)[0] == 400
    for path in ("/clear", "/upload?name=a.jpg", "/read", "/draw", "/track"):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"https://127.0.0.1:{port}"):
            assert ask(server, path, b"{}", origin=origin)[0] == 403
        assert ask(server, path, b"{}")[0] == 403
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))  # it listens at one address, not at all
    with urllib.request.urlopen(server.url) as response:
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_no_name_leads_out_of_the_folder(server, clip):
    me = server.url
    assert ask(server, "/clear", b"", origin=me)[0] == 200
    data = clip.frames[0].read_bytes()
    names = ["../../../escaped.jpg", "/tmp/escaped.png", "..", "", "a\0b.jpg", "x" * 5000 + ".jpg", "<script>.jpg"]
    for name in names:
        assert ask(server, f"/upload?name={urllib.parse.quote(name)}", data, origin=me)[0] == 200
    inside = [path for path in server.folder.rglob("*") if path.is_file()]
    assert len(inside) == len(names)
    assert all(re.fullmatch(r"\d{8}\.(jpg|png|file)", path.name) for path in inside)
    assert b'"total":5' in ask(server, "/read", b"", origin=me)[1].replace(b" ", b"")
    for path in ("/frames/../0", "/frames/..%2F..%2Fuploads/0", "/assets/..%2Fplay.py", "/assets/play.py"):
        assert ask(server, path)[0] in (400, 404, 422)
    for start in ({"frame": 9, "box": [1, 1, 5, 5]}, {"frame": 0, "box": [500, 1, 5, 5]}):
        assert (
            b'{"error": '
            in ask(server, "/track", json.dumps(start).encode(), origin=me, content_type="application/json")[1]
        )
