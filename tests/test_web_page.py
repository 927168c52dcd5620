"""The page of `llava-web` in a real browser: every feature, by mouse and keyboard, and no error in console or log."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from family_checkpoints import write_family
from PIL import Image
from scene_fixtures import PATH, QUESTION
from test_web_server import runs  # noqa: F401 - a fixture
from video_fixtures import moving_square, write_video
from web_fixtures import question, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
SHOTS = os.environ.get("LLAVA_WEB_SHOTS")
"""Folder to write the README's screenshots to; empty: none are kept."""
SLOW = 60_000


@pytest.fixture(scope="module")
def server(runs):  # noqa: F811
    _, out = runs
    with serving(run=str(out / "fastv.jsonl"), against=str(out / "dense.jsonl"), max_new_tokens=64) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def page(browser, server, request, caplog):
    """A page of a browser of its own; at the end neither console, network nor server may have seen an error."""
    width, scheme = getattr(request, "param", (1280, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["clipboard-write"]
    )
    made, wrong = context.new_page(), []
    made.set_default_timeout(SLOW)
    made.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on(
        "request", lambda one: None if one.url.startswith((server.url, "data:", "blob:")) else wrong.append(one.url)
    )
    made.expected = []
    with caplog.at_level(logging.WARNING):
        yield made
    logged = [record.getMessage() for record in caplog.records if record.name.startswith(("llava", "uvicorn"))]
    wrong = [text for text in wrong if not any(part in text for part in made.expected)]
    context.close()
    assert wrong == [] and logged == []


def open_page(page, server):
    page.goto(f"{server.url}/")
    page.wait_for_selector("#gallery li button")
    page.click("#show-ask")


def ask(page):
    """Add the picture, ask, and wait until every layer is measured."""
    page.set_input_files("#files", PATH)
    page.wait_for_selector(".thumbnail img")
    page.fill("#question", QUESTION)
    page.click("#send")
    settled(page)


def until(page, expression, seconds=60):
    """Wait for a JavaScript expression; the page's policy forbids Playwright's own way, which evaluates in the page."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def settled(page):
    until(page, "document.getElementById('stop').disabled && !document.getElementById('tokens').hidden")


def answer(page, side):
    return page.inner_text(f"#answer-{side} .text")


def figure(page, name, side):
    row = page.locator("#figures tbody tr", has_text=name).first
    return row.locator("td").nth(1 + "ab".index(side)).inner_text()


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(300)
        path = Path(SHOTS) / name
        page.screenshot(path=str(path), full_page=True)
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def test_ask_compare_and_look_through_the_layers(page, server):
    open_page(page, server)
    ask(page)
    assert answer(page, "a") == answer(page, "b") == "NUT"
    assert (
        figure(page, "visual tokens, last layer", "a") == "8"
        and figure(page, "visual tokens, last layer", "b") == "144"
    )
    assert float(figure(page, "share of dense FLOPs", "a")) < 0.6 and figure(page, "first token", "a").endswith(" ms")
    assert page.locator("#answer-a .chip").count() == 4
    legends = {}
    for layer in (0, 1, 4, 5):
        page.fill("#layer", str(layer))
        legends[layer] = page.inner_text("#legend")
    assert "sink: 1" in legends[0] and "merged into the sink: 143" in legends[0]
    assert "not read in this layer: 144" in legends[1] and "kept, read by text: 144" in legends[4]
    assert "kept, read by text: 8" in legends[5] and "has left: 136" in legends[5]
    for metric in ("cosine", "L2", "attention"):
        page.select_option("#metric", label=metric)
        assert metric in page.inner_text("#legend")
    page.hover("#picture", position={"x": 60, "y": 70})
    assert "cosine" in page.inner_text("#readout") and "layer 5" in page.inner_text("#readout")
    page.click("#sides button >> nth=1")
    assert "144 visual tokens" in page.inner_text("#layer-shown")
    page.click("#sides button >> nth=0")
    page.select_option("#metric", "states")
    shot(page, "web.png")


def test_a_dragged_threshold_runs_the_prompt_again(page, server):
    open_page(page, server)
    ask(page)
    line = page.locator(".handle", has_text="tokens_threshold").locator("line")
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 40, steps=4)
    page.mouse.up()
    until(page, "!document.querySelector('#figures td:nth-child(2)').innerText.match(/^8$/)")
    settled(page)
    assert (
        int(figure(page, "visual tokens, last layer", "a")) < 8
        and figure(page, "visual tokens, last layer", "b") == "144"
    )
    page.locator(".handle", has_text="tokens_threshold").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    kept = figure(page, "visual tokens, last layer", "a")
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('#figures td:nth-child(2)').innerText !== '{kept}'")
    settled(page)
    assert int(figure(page, "visual tokens, last layer", "a")) > int(kept)


def test_brush_words_and_controls(page, server):
    open_page(page, server)
    ask(page)
    page.locator("#picture").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#words tbody tr")
    assert page.locator("#words tbody tr").count() == 12 and "token 1" in page.inner_text("#words h2")
    page.evaluate("document.getElementById('words').hidden = true")  # it moves the page when it comes
    page.check("input[name=brush][value=go]")
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    for part in (0.27, 0.35, 0.4):
        for across in (0.03, 0.4):
            page.mouse.move(box["x"] + across * box["width"], box["y"] + part * box["height"])
    page.mouse.up()
    page.click("#brush-ask")
    until(page, "document.querySelector('#answer-b h3').innerText.includes('brushed')")
    settled(page)
    assert answer(page, "a") == "NUT" != answer(page, "b")  # the sign is gone
    assert page.locator("#answer-b mark").count() == 1
    shot(page, "web-brush.png")
    kept = figure(page, "visual tokens, last layer", "a")
    page.click("#sides button >> nth=0")
    for control in ("random", "downsampled"):
        page.click(f"#{control}")
        until(page, f"document.querySelector('#answer-b h3').innerText.includes('{control}')")
        settled(page)
        assert figure(page, "tokens per layer", "b") == figure(page, "tokens per layer", "a")
        assert figure(page, "visual tokens, last layer", "b") == kept


def test_any_config_and_errors_in_one_sentence(page, server):
    page.expected = ["400 (Bad Request)"]
    open_page(page, server)
    page.click("#send")
    assert page.inner_text("#error") == "type a question first"
    page.select_option("#config-b select", "other …")
    page.fill("#config-b textarea", "{")
    ask_quickly(page, "Hello")
    assert page.inner_text("#error").startswith("the config is not JSON")
    page.fill("#config-b textarea", '{"method": "fastv", "k": 99}')
    page.click("#send")
    until(page, "document.getElementById('error').innerText.includes('12 layers')")
    page.select_option("#config-b select", "nothing")
    page.click("#send")
    until(page, "document.getElementById('stop').disabled && document.getElementById('error').hidden")
    assert page.is_hidden("#answer-b") and page.is_hidden("#tokens")  # a question without a picture
    page.select_option("#config-a select", "FastV")
    assert '"method": "fastv"' in page.input_value("#config-a textarea")


def ask_quickly(page, text):
    page.fill("#question", text)
    page.click("#send")
    until(page, "!document.getElementById('error').hidden")


def test_a_long_prompt_shows_progress_and_can_be_stopped(page, server, monkeypatch):
    decoder = server.service.loaded.model.model
    hook = decoder.layers[3].register_forward_pre_hook(lambda module, args: time.sleep(1.5))
    try:
        open_page(page, server)
        page.set_input_files("#files", PATH)
        page.wait_for_selector(".thumbnail img")
        page.fill("#question", QUESTION)
        page.click("#send")
        until(page, "document.getElementById('status').innerText.includes('of 12')")
        assert page.is_visible("#progress") and page.is_enabled("#stop")
        page.keyboard.press("Escape")
        until(page, "document.getElementById('status').innerText === 'stopped'")
    finally:
        hook.remove()
    assert page.is_disabled("#stop") and page.is_hidden("#error")


def test_exports_and_a_link_that_restores_the_view(page, server, tmp_path):
    open_page(page, server)
    page.select_option("#config-b select", "FastV")
    ask(page)
    page.fill("#layer", "7")
    page.select_option("#metric", "cosine")
    with page.expect_download() as plan:
        page.click("#save-plan")
    plan.value.save_as(tmp_path / "plan.json")
    saved = json.loads((tmp_path / "plan.json").read_text())
    replayed = server.ask(question(QUESTION, PATH), pruning_config=saved).pruning["trace"]
    assert replayed["kept"] == saved["trace"]["kept"] and len(replayed["kept"]) == 8
    with page.expect_download() as picture:
        page.click("#save-picture")
    picture.value.save_as(tmp_path / "tokens.png")
    assert Image.open(tmp_path / "tokens.png").size[0] >= 600
    page.click("#copy-link")
    until(page, "location.hash.startsWith('#view=')")
    before = page.inner_text("#legend"), answer(page, "a"), answer(page, "b")
    page.reload()
    until(page, "!document.getElementById('tokens').hidden")
    settled(page)
    assert (page.inner_text("#legend"), answer(page, "a"), answer(page, "b")) == before
    assert page.input_value("#layer") == "7" and page.input_value("#metric") == "cosine"
    assert page.input_value("#config-b select") == "FastV"


def test_the_gallery_filters_opens_and_asks_again(page, server, monkeypatch):
    page.goto(f"{server.url}/")
    page.wait_for_selector("#gallery li button")
    kinds = page.locator("#gallery .kind")
    first, count = kinds.first.inner_text(), kinds.count()
    page.locator("#gallery li button").first.click()
    page.wait_for_selector("#entry .entry-picture")
    page.fill("#entry input[type=range]", "0")
    assert "kept, read by text: 144" in page.inner_text("#entry .legend")
    page.fill("#entry input[type=range]", "11")
    assert "has left: 108" in page.inner_text("#entry .legend")
    page.select_option("#kind", "same")
    until(page, "[...document.querySelectorAll('#gallery .kind')].every(one => one.innerText.match(/^same/i))")
    assert kinds.count() <= count and first.split()[0].lower() in ("broken", "fixed", "changed", "same")
    page.fill("#kept-high", "1")
    page.keyboard.press("Tab")
    until(page, "document.querySelectorAll('#gallery .kind').length === 0")
    page.click("#entry > button")
    settled(page)
    assert page.is_visible("#answer-a .text") and answer(page, "a")


def test_a_video_shows_a_strip_of_frames(page, tmp_path):
    folder = write_family(tmp_path / "qwen2_vl", "qwen2_vl")
    clip = write_video(tmp_path / "clip.mp4", moving_square(1, frames=8, height=32, width=48))
    config = '{"method": "random", "layer": 0, "keep": 6}'
    with serving(model_path=str(folder), pruning_config=config, max_new_tokens=4) as made:
        page.expected = [made.url]
        page.goto(f"{made.url}/")
        page.set_input_files("#files", clip)
        page.wait_for_selector(".thumbnail video")
        page.fill("#question", "What moves?")
        page.click("#send")
        settled(page)
        assert page.locator("#strip button").count() == 4  # two frames are read together
        drawn = set()
        for frame in range(4):
            page.locator("#strip button").nth(frame).click()
            assert page.locator("#strip button").nth(frame).get_attribute("aria-pressed") == "true"
            drawn.add(page.evaluate("document.getElementById('picture').toDataURL()"))
        assert len(drawn) == 4 and "kept, read by text: 6" in page.inner_text("#legend")


@pytest.mark.parametrize("page", [(1280, "dark"), (390, "light")], indirect=True, ids=["dark", "narrow"])
def test_dark_and_narrow(page, server):
    """A picture is pasted; the page is as wide as the window, and everything is reached with the keyboard."""
    open_page(page, server)
    page.evaluate(
        """async url => {
            const blob = await (await fetch(url)).blob();
            const data = new DataTransfer();
            data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        "/api/example",
    )
    page.wait_for_selector(".thumbnail img")
    page.focus("#question")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    settled(page)
    assert answer(page, "a") == "NUT"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 22, 26)") == (page.viewport_size["width"] == 1280)
    reached = set()
    page.focus("#drop")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('class')"))
    assert {"send", "metric", "picture", "layer", "handle", "random", "save-plan", "copy-link"} <= reached
