"""The page at /, in a browser."""

import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect
from quantize.pages import WIDTHS, cut
from serve.servers import samples_of, serving, wait_until_idle

from valle_convert.families.bundle import Bundle
from valle_convert.serve.gate import Access

TEXT = 'Hello world. It\'s "the old man".'
#: How much was given to the loudspeaker, and when it was to begin.
_LISTEN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function(at) {
  const sound = this.buffer.getChannelData(0);
  window.heard.push({at, seconds: this.buffer.duration, peak: Math.max(...sound.map(Math.abs))});
  return start.call(this, at);
};
"""


@pytest.fixture
def page(browser: Browser, client: httpx2.Client) -> Iterator[Page]:
    opened = browser.new_page()
    opened.add_init_script(_LISTEN)
    asked: list[str] = []
    faults: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(str(client.base_url))
    yield opened
    opened.close()
    assert all(url.startswith((str(client.base_url), "blob:")) for url in asked)
    assert [one for one in faults if "Failed to load resource" not in one] == []


def test_the_page_plays_while_the_sound_is_made(page: Page, tmp_path: Path) -> None:
    expect(page.locator("h1")).to_have_text("miniature-q8_0, Q8_0")
    page.locator("#input").fill(TEXT)
    page.locator("#voice").select_option("deep")
    page.locator("#seed").fill("3")
    page.get_by_role("button", name="Speak").click()
    expect(page.locator("#status")).to_contain_text("s of sound", timeout=60_000)
    heard = page.evaluate("window.heard")
    assert len(heard) >= 2  # a sentence at a time
    assert max(one["peak"] for one in heard) > 0.01
    for one, following in pairwise(heard):
        assert following["at"] >= one["at"] + one["seconds"] - 1e-6
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save as wav").click()
    samples, rate = samples_of(Path(saved.value.path()).read_bytes())
    assert rate == 24_000
    assert len(samples) / rate == pytest.approx(sum(one["seconds"] for one in heard))

    command = page.locator("#curl").inner_text().replace("speech.mp3", "speech.wav")
    assert "deep" in command
    wanted = command.replace("mp3", "wav")
    subprocess.run(["bash", "-c", f"{wanted} --fail -s"], cwd=tmp_path, check=True)
    by_curl, _ = samples_of((tmp_path / "speech.wav").read_bytes())
    assert (by_curl == samples).all()


def test_stop_ends_the_work(page: Page, client: httpx2.Client) -> None:
    page.locator("#input").fill("The old man sees the river. " * 30)
    page.get_by_role("button", name="Speak").click()
    expect(page.locator("#status")).to_contain_text("so far", timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("stopped")
    wait_until_idle(client)


def test_what_is_wrong_is_said(page: Page) -> None:
    page.locator("#language").fill("xx")
    page.get_by_role("button", name="Speak").click()
    expect(page.locator("#status.error")).to_contain_text("xx")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("#input").fill("x" * 500)
    assert cut(page) == []


def test_a_locked_server_is_used_with_its_key(browser: Browser, miniature: Bundle) -> None:
    with serving(miniature, None, access=Access("secret")) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.get_by_role("button", name="Speak").click()
        expect(page.locator("#status.error")).to_contain_text("API key")
        page.locator("#key").fill("secret")
        page.get_by_role("button", name="Speak").click()
        expect(page.locator("#status")).to_contain_text("s of sound", timeout=60_000)
        assert "secret" not in page.locator("#curl").inner_text()
        page.close()
