"""The page in a real browser: Debian's chromium, without a window."""

import shutil

import numpy as np
import pytest
from PIL import Image

from walt.data import media
from walt.generation.record import generate, read_record

pytest.importorskip("gradio", reason="gradio is not installed: pip install walt[serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install walt[browser]")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed: apt-get install chromium"),
    pytest.mark.slow,
]
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def address(studio, tmp_path_factory):
    from serving.serving import serving

    with serving(studio, tmp_path_factory.mktemp("uploads")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Its sandbox needs what containers lack, and the page is our own.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, and under `elsewhere` what was asked of other machines."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.elsewhere, page.errors = [], []
    page.on(
        "request",
        lambda request: (
            page.elsewhere.append(request.url)
            if request.url.startswith("http") and not request.url.startswith(address)
            else None
        ),
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#go")
    yield page
    page.close()


def set_number(page, name, value):
    page.fill(f"#{name} input[type=number]", str(value))
    page.keyboard.press("Tab")


def wait_for_status(page, text):
    page.wait_for_function("text => document.querySelector('#status').innerText.trim() == text", arg=text)


def test_a_video_is_made_shown_kept_and_made_again(page, studio, tmp_path):
    page.fill("#prompt textarea", "a red ball moves left")
    set_number(page, "seed", 11)
    page.click("#go")
    page.wait_for_selector("#stage img")
    wait_for_status(page, "Done")
    page.wait_for_function("document.querySelector('#result video')?.readyState >= 2")
    facts = page.inner_text("#facts")
    assert "a red ball moves left" in facts and "11" in facts and "walt sample --like=" in facts
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "made.mp4")
    record = read_record(tmp_path / "made.mp4")
    assert record.seed == 11 and record.prompts == ("a red ball moves left",)
    assert media.read_video(tmp_path / "made.mp4")[0].shape == (5, 256, 256, 3)
    assert generate(studio.model, record).shape == (1, 5, 16, 16, 3)

    set_number(page, "seed", 12)
    page.click("#go")
    page.wait_for_function("document.querySelectorAll('#gallery img').length == 2")
    assert "12" in page.inner_text("#facts")
    page.locator("#gallery img").nth(1).click()
    page.wait_for_function("document.querySelector('#facts').innerText.includes('11')")
    assert not page.elsewhere and not page.errors


def test_a_mistake_is_a_sentence_and_the_page_goes_on(page):
    page.fill("#prompt textarea", "<img src=x onerror=document.title='gotcha'> (ball:9)")
    page.click("#go")
    page.wait_for_selector("text=has a weight out of range")
    assert page.title() != "gotcha"
    page.fill("#prompt textarea", "a blue box")
    page.click("#go")
    wait_for_status(page, "Done")


def choose(page, task, field):
    """Chooses a task, and waits for a field of its own."""
    page.click("#task input")
    page.click(f"[role=option]:has-text('{task}:')")
    page.wait_for_selector(field)


def facts_of(page):
    page.click("#go")
    wait_for_status(page, "Done")
    return page.inner_text("#facts")


def test_keyframes_a_stream_and_a_storyboard(page, tmp_path):
    for name, value in (("a", 30), ("b", 220)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    page.fill("#prompt textarea", "a red ball moves left")
    choose(page, "keyframes", "#keyframes")
    page.set_input_files("#keyframes input[type=file]", [tmp_path / "a.png", tmp_path / "b.png"])
    page.wait_for_function("document.querySelector('#frames input, #frames textarea').value == '0, 4'")
    assert "keyframes" in facts_of(page)

    choose(page, "stream", "#prompt label:has-text('a line for each window')")
    page.fill("#prompt textarea", "a red ball moves left\na blue box moves right")
    page.click("text=Settings")
    set_number(page, "num_frames", 9)
    facts = facts_of(page)
    assert "9 frames" in facts and "a red ball moves left; a blue box moves right" in facts

    choose(page, "storyboard", "#storyboard")
    assert not page.is_visible("#prompt")
    (tmp_path / "shots.yaml").write_text("shots:\n- prompt: a blue box moves right\n  num_frames: 3\n")
    with page.expect_file_chooser() as chooser:
        page.click("#from_file")
    chooser.value.set_files(tmp_path / "shots.yaml")
    page.wait_for_function("document.querySelector('#storyboard textarea').value.startsWith('shots:')")
    assert "a blue box moves right, num frames 3" in facts_of(page)
    page.fill("#storyboard textarea", "shots: [{prompt: x, image: /etc/passwd}]")
    page.click("#go")
    page.wait_for_selector("text=this page reads none that a storyboard names")
    assert not page.errors


def test_a_stopped_video_is_not_made_and_the_next_one_is(page, slow_steps):
    page.fill("#prompt textarea", "a blue box")
    page.click("text=Settings")
    set_number(page, "steps", 400)
    page.click("#go")
    page.wait_for_selector("#stage img")
    page.click("#stop")
    wait_for_status(page, "Stopped")
    page.wait_for_timeout(1000)  # a press of the button counts once the last one has ended
    set_number(page, "steps", 2)
    page.click("#go")
    wait_for_status(page, "Done")


def test_another_seed(page):
    before = page.input_value("#seed input")
    page.click("#another")
    page.wait_for_function("before => document.querySelector('#seed input').value != before", arg=before)


def test_it_fits_a_telephone(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE)
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#go")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
