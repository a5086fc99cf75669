"""The first notebook in a real JupyterLab: runs without errors, and its sliders follow the keys.

Needs playwright and a Chromium of the system; left out where either is missing.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[2]
CHROMIUM = next((p for p in ("/usr/lib/chromium/chromium", shutil.which("chromium"),
                             shutil.which("google-chrome")) if p and os.path.exists(p)), None)
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
KERNEL = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel?.status"
PICTURE = ".jupyter-widgets svg[role=img]"


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab of its own over a copy of the repository: free port, own settings."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER{name}": str(tmp_path / name) for name in
               ("_CONFIG_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | folders
    with open(tmp_path / "lab.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
             "--ServerApp.ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
             "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
             f"--ServerApp.root_dir={root}"], env=environment, stdout=log, stderr=log)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url + "/api/status", timeout=1).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(20)


def test_start_here_runs_and_its_sliders_follow_the_keys(lab):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 950})
        page.set_default_timeout(240_000)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{lab}/lab/tree/notebooks/00_start_here.ipynb?reset")
        page.wait_for_function(f"{KERNEL} === 'idle'")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        for mime in ("error", "stderr"):
            assert page.locator(f"[data-mime-type='application/vnd.jupyter.{mime}']").count() == 0
        for number, name in enumerate(("G = ", "epsilon = ")):
            handle = page.locator(".noUi-handle").nth(number)
            handle.scroll_into_view_if_needed()
            said = page.locator(PICTURE).nth(number).get_attribute("aria-label")
            assert said.startswith(name)
            pixels = page.locator(PICTURE).nth(number).screenshot()
            handle.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function(
                "([i, said]) => document.querySelectorAll("
                f"'{PICTURE}')[i].getAttribute('aria-label') !== said", arg=[number, said])
            assert page.locator(PICTURE).nth(number).screenshot() != pixels
        assert not errors
        browser.close()
