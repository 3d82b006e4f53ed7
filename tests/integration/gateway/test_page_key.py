"""The page where the gateway asks for API keys: it asks the user, once, and goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from services.common.keys import Limits, changing, create_key
from services.gateway.config import AccessConfig
from tests.integration.gateway.conftest import MakeSetup, Setup


async def keyed(make_setup: MakeSetup, path: Path, *, sees_cluster: bool) -> tuple[Setup, str]:
    key, entry = create_key("alice", Limits(), sees_cluster=sees_cluster)
    with changing(path) as ring:
        ring.keys[entry.key_id] = entry
    setup = await make_setup(access=AccessConfig(keys_file=str(path)), registry_port=0)
    return setup, key


async def open_with_key(page: Page, setup: Setup, key: str) -> None:
    """Give a wrong key, be told so, then give the right one."""
    await page.goto(f"http://{setup.gateway.http_address}/")
    dialog = page.get_by_role("dialog", name="API key")
    await expect(dialog).to_be_visible()
    await page.get_by_label("Key", exact=True).fill("baton_wrong")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("alert")).to_have_text("This key is not accepted.")
    await page.get_by_label("Key", exact=True).fill(key)
    await page.keyboard.press("Enter")
    await expect(dialog).not_to_be_visible()


async def ask(page: Page, text: str) -> None:
    await page.get_by_label("Most tokens").fill("5")
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.locator(".figures")).to_contain_text("answer 5")


@pytest.mark.parametrize("sees_cluster", [True, False])
async def test_a_key_is_asked_for_and_used(make_setup: MakeSetup, tmp_path: Path, sees_cluster: bool) -> None:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed")
    setup, key = await keyed(make_setup, tmp_path / "keys.json", sees_cluster=sees_cluster)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = await browser.new_page()
            await open_with_key(page, setup, key)
            wanted = "ready" if sees_cluster else "this key may not look at the cluster"
            await expect(page.locator("#status-text")).to_contain_text(wanted)
            await ask(page, "Hello")
            assert (
                await page.evaluate("Object.values(localStorage).some((one) => one.includes('baton_'))")
                is False
            )
        finally:
            await browser.close()
