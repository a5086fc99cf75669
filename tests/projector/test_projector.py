"""The cockpit and a lesson as pages for a projector, looked at in Chromium.

Left out where Voilà (the ``projector`` extra), playwright or a Chromium is missing.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks.browser import browser, why_not

ROOT = Path(__file__).parents[2]
reason = "Voilà is not installed" if importlib.util.find_spec("voila") is None else why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture
def serve(tmp_path):
    """serve(*arguments) -> the address of the page that the command shows."""
    running = []

    def start(*arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with open(tmp_path / "log", "w") as log:
            running.append(subprocess.Popen(
                [sys.executable, "-m", "grpo_lib", "project", *arguments, "--no-browser",
                 "--port", str(port)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True))
        url, end = f"http://127.0.0.1:{port}/", time.monotonic() + 60
        while True:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    return url
            assert running[-1].poll() is None and time.monotonic() < end, (
                tmp_path / "log").read_text()
            time.sleep(0.2)

    yield start
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_the_cockpit_is_alone_on_its_page_and_trains(serve):
    url = serve()
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1920, "height": 1080})
        page.goto(url)
        box = page.locator(".grpo-cockpit")
        box.wait_for(timeout=60_000)
        assert page.locator(".jp-CodeCell .jp-InputArea:visible").count() == 0
        box.get_by_role("button", name="One step").click()
        page.wait_for_function("document.querySelector('[role=status]').innerText"
                               ".includes('paused, step 1 of 50')", timeout=30_000)
        assert box.locator("svg[role=img]").bounding_box()["width"] > 900


def test_a_lesson_is_shown_without_its_code_and_its_sliders_live(serve):
    url = serve("03")
    urllib.request.urlopen(url, timeout=120).close()
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1920, "height": 1080})
        page.goto(url, timeout=120_000)
        box = page.locator(".widget-vbox:has(svg[role=img])").first
        box.wait_for(timeout=120_000)
        said = []
        for key in ("Home", "End"):  # the explorer follows to both ends of its first slider
            box.locator(".noUi-handle").first.focus()
            page.keyboard.press(key)
            page.wait_for_timeout(3000)
            said.append(box.locator("svg[role=img]").first.get_attribute("aria-label"))
        assert said[0] != said[1]
        assert "Advantages" in page.locator("h1").first.inner_text()
