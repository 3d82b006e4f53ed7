"""The gateway's page in a browser, on a cluster with the real model.

With BATON_SCREENSHOTS=DIR the pictures go to DIR (`make screenshots`: docs/images), else to a temporary one.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from baton.client import Client
from baton.cluster import LocalCluster
from tests.support.browser import chromium, open_page
from tests.support.traffic import hold_nothing, wait_for


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalCluster]:
    with LocalCluster(
        prefill=2, decode=2, prefill_args=["--max-chunk-tokens", "64", "--max-step-tokens", "64"]
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("BATON_SCREENSHOTS", tmp_path))


def ask(page: Page, text: str, max_tokens: int) -> None:
    page.get_by_label("Most tokens").fill(str(max_tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def test_an_answer_streams_with_its_timings(pair: LocalCluster, browser: Browser) -> None:
    with open_page(browser, pair.http_url) as page:
        expect(page.get_by_role("status")).to_have_text("ready")
        ask(page, "Count from one to twenty, in words.", 48)
        answer = page.get_by_label("Answer", exact=True)
        expect(answer).to_have_class(re.compile("running"))
        lengths: set[int] = set()
        while page.locator("#stop").is_visible():
            lengths.add(len(answer.locator(".text").inner_text()))
        assert len(lengths) > 5, "the text did not grow token by token"
        expect(page.locator("#send")).to_be_visible()
        figures = answer.locator(".figures")
        expect(figures).to_contain_text(re.compile(r"TTFT \d"))
        expect(figures).to_contain_text("answer 48")
        expect(figures).to_contain_text("end length")
        assert figures.get_by_role("img", name="gaps between the last").locator("rect").count() > 20
        # The gateway tells which way the request went.
        expect(figures).to_contain_text(re.compile(r"prefill-\d → decode-\d by shared_memory"))
        for kind in ("chunk", "handoff", "decode"):
            expect(figures.locator(f".track .bar-{kind}").first).to_be_attached()
        # The conversation goes on from there.
        ask(page, "Thank you.", 8)
        expect(page.locator("#send")).to_be_visible()
        expect(page.get_by_label("Answer", exact=True)).to_have_count(2)


def test_stop_ends_the_answer_and_frees_the_workers(pair: LocalCluster, browser: Browser) -> None:
    with open_page(browser, pair.http_url) as page, Client(pair.gateway_address) as client:
        expect(page.get_by_role("status")).to_have_text("ready")
        ask(page, "Tell me a very long story.", 2000)
        answer = page.get_by_label("Answer", exact=True)
        expect(answer.locator(".figures")).to_contain_text("ITL")
        page.get_by_role("button", name="Stop").click()
        expect(answer.locator(".figures")).to_contain_text("end stopped")
        wait_for("blocks given back", lambda: hold_nothing(client, pair.workers), 10.0)
        # Escape does the same from the keyboard.
        ask(page, "Go on with the story for as long as you can.", 2000)
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#send")).to_be_visible()
        wait_for("blocks given back", lambda: hold_nothing(client, pair.workers), 10.0)


def test_an_error_is_told_in_the_gateways_words(pair: LocalCluster, browser: Browser) -> None:
    with open_page(browser, pair.http_url, allowed=("400 (Bad Request)",)) as page:
        expect(page.get_by_role("status")).to_have_text("ready")
        ask(page, "Hello", 99999)
        expect(page.get_by_role("alert").first).to_contain_text("exceed the context")


def test_the_keyboard_reaches_everything(pair: LocalCluster, browser: Browser) -> None:
    with open_page(browser, pair.http_url) as page:
        expect(page.get_by_label("Message")).to_be_focused()
        page.get_by_role("tab", name="Chat").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Cluster")).to_be_focused()
        expect(page.get_by_role("tabpanel", name="Cluster")).to_be_visible()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tabpanel", name="Timeline")).to_be_visible()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tabpanel", name="Chat")).to_be_visible()
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("input, select, textarea, button")]
                .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
                .map((one) => one.outerHTML)"""
        )
        assert unnamed == []


def test_a_worker_vanishes_and_returns(pair: LocalCluster, browser: Browser) -> None:
    with open_page(browser, f"{pair.http_url}/#cluster") as page:
        victim = next(worker for worker in pair.workers if worker.name == "decode-1")
        card = page.get_by_role("listitem", name="decode worker decode-1")
        expect(card).to_contain_text("serving")
        expect(page.get_by_role("meter", name="KV blocks in use")).to_have_count(4)
        pair.kill(victim)
        expect(card).to_contain_text("lost")
        log = page.locator("#log")
        expect(log).to_contain_text("decode-1 was lost")
        pair.restart(victim)
        expect(card).to_contain_text("serving")
        expect(log).to_contain_text("decode-1 returned")


def test_the_timeline_shows_each_part(pair: LocalCluster, browser: Browser) -> None:
    with open_page(browser, f"{pair.http_url}/#timeline") as page, Client(pair.gateway_address) as client:
        words = " ".join(f"word{i}" for i in range(90))
        finished = client.complete(words, max_tokens=12, temperature=0.0, cache_salt="timeline").finished
        row = page.locator("#rows").get_by_role("option").first
        expect(row).to_have_attribute(
            "aria-label", re.compile(rf"^{finished.usage.prompt_tokens} → 12 tokens")
        )
        assert row.locator(".bar-chunk").count() == -(-finished.usage.prompt_tokens // 64)
        page.get_by_role("listbox").focus()
        page.keyboard.press("ArrowDown")
        details = page.get_by_role("region", name="Selected request")
        for part in ("queue", "prefill queue", "prefill chunk", "hand-off", "decode"):
            expect(details.get_by_role("cell", name=part, exact=True).first).to_be_visible()
        page.get_by_label("start together").check()
        left = row.locator(".bar-queue").evaluate("(bar) => parseFloat(bar.style.left)")
        assert 0 <= left < 5


def test_screenshots(pair: LocalCluster, browser: Browser, pictures: Path) -> None:
    pictures.mkdir(parents=True, exist_ok=True)
    load = [threading.Thread(target=_load, args=(pair, i)) for i in range(10)]
    with open_page(browser, pair.http_url) as page:
        expect(page.get_by_role("status")).to_have_text("ready")
        ask(page, "What is the capital of France?", 64)
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".figures .bar-decode")).to_have_count(1)
        ask(page, "Name three of its museums, and say in a sentence what each one shows.", 120)
        expect(page.locator("#send")).to_be_visible(timeout=60_000)
        expect(page.locator(".figures .bar-decode")).to_have_count(2)
        page.get_by_label("Message").fill("")
        _take(page, pictures, "chat")
        for thread in load:
            thread.start()
        page.get_by_role("tab", name="Cluster").click()
        expect(page.get_by_role("listitem").first).to_contain_text(re.compile(r"running\s*[1-9]"))
        page.wait_for_timeout(4000)
        _take(page, pictures, "cluster")
        page.get_by_role("tab", name="Timeline").click()
        page.get_by_label("Window").select_option("10")
        for thread in load:
            thread.join()
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("listbox").focus()
        page.keyboard.press("ArrowDown")
        _take(page, pictures, "timeline")


def _take(page: Page, pictures: Path, view: str) -> None:
    schemes: tuple[Literal["dark", "light"], ...] = ("dark", "light")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        picture = pictures / f"page-{view}-{scheme}.png"
        page.screenshot(path=picture)
        assert picture.stat().st_size > 20_000


def _load(cluster: LocalCluster, number: int) -> None:
    with Client(cluster.gateway_address) as client:
        threading.Event().wait(0.35 * number)
        words = " ".join(f"load{number}-{i}" for i in range(40 + 30 * (number % 4)))
        client.complete(words, max_tokens=60 + 15 * (number % 3), temperature=0.0)
