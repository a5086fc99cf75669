"""The cockpit and a lesson as pages for a projector, looked at in Chromium.

Left out where Voilà (the ``projector`` extra), playwright or a Chromium is missing.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from waiting import PATIENCE, until

from benchmarks.browser import browser, why_not

ROOT = Path(__file__).parents[2]
reason = "Voilà is not installed" if importlib.util.find_spec("voila") is None else why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture
def serve(tmp_path):
    """serve(*arguments) -> the address of the page that the command shows."""
    running = []

    def start(*arguments, code=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with open(tmp_path / "log", "w") as log:
            running.append(subprocess.Popen(
                [sys.executable, *(["-c", code] if code else ["-m", "grpo_lib"]), "project",
                 *arguments, "--no-browser", "--port", str(port)], cwd=ROOT, stdout=log,
                stderr=log, start_new_session=True, env=os.environ | {"TMPDIR": str(tmp_path)}))
        url = f"http://127.0.0.1:{port}/"
        try:
            until(lambda: answers(port), lambda: running[-1].poll() is None)
        except AssertionError as error:
            raise AssertionError((tmp_path / "log").read_text()) from error
        return url

    start.running = running
    yield start
    for process in running:
        process.terminate()  # it alone; what it has started ends with it
        process.wait(PATIENCE)


def answers(port):
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def open_page(chromium):
    page = chromium.new_page(viewport={"width": 1920, "height": 1080})
    page.set_default_timeout(PATIENCE * 1000)
    return page


def kernels_of(process):
    """The kernels that a server's process has started, by their process numbers."""
    found, parents = [], {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(entry.name)] = int(stat[1])
            if b"ipykernel" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, IndexError):
            continue

    def above(pid):
        while pid in parents:
            yield pid
            pid = parents[pid]

    return [pid for pid in found if process.pid in above(pid)]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_the_cockpit_trains_and_ends_with_its_page_and_everything_with_the_command(serve, tmp_path):
    url = serve(code="import sys; from grpo_lib import __main__; from grpo_lib.cli import "
                     "projecting; projecting.CULL_SECONDS = 4; sys.exit(__main__.main())")
    [process] = serve.running
    with browser() as chromium:
        page = open_page(chromium)
        page.goto(url)
        box = page.locator(".grpo-cockpit")
        box.wait_for()
        assert page.locator(".jp-CodeCell .jp-InputArea:visible").count() == 0
        assert page.locator(".grpo-mark").count() == 1, "an explorer's three outputs"
        assert page.locator(".jp-RenderedImage:visible").count() == 0, "no picture beside it"
        box.get_by_role("button", name="One step").click()
        page.wait_for_function("document.querySelector('[role=status]').innerText"
                               ".includes('paused, step 1 of 50')")
        assert box.locator("svg[role=img]").bounding_box()["width"] > 900
        page.close()
    assert kernels_of(process)
    until(lambda: not kernels_of(process))  # none lives on without its page
    process.terminate()
    process.wait(PATIENCE)
    assert not answers(int(url.rsplit(":", 1)[1].strip("/")))
    assert list(tmp_path.glob("grpo_project_*")) == []


def test_a_lesson_is_shown_without_its_code_and_its_sliders_live(serve):
    url = serve("03")
    urllib.request.urlopen(url, timeout=PATIENCE).close()
    with browser() as chromium:
        page = open_page(chromium)
        page.goto(url)
        box = page.locator(".widget-vbox:has(svg[role=img])").first
        box.wait_for()
        handle = box.locator(".noUi-handle").first
        handle.focus()
        for key, end in (("Home", "min"), ("End", "max")):  # the explorer follows to both ends
            if handle.get_attribute("aria-valuenow") != handle.get_attribute(f"aria-value{end}"):
                said = box.locator("svg[role=img]").first.get_attribute("aria-label")
                page.keyboard.press(key)
                page.wait_for_function(
                    "([box, said]) => box.querySelector('svg[role=img]')?.getAttribute("
                    "'aria-label') !== said", arg=[box.element_handle(), said])
        assert "Advantages" in page.locator("h1").first.inner_text()
