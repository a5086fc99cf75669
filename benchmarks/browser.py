"""A real JupyterLab in headless Chromium: run a notebook, move its sliders by the keyboard.

Shared by the browser tests and by ``python -m benchmarks explorers``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHROMIUM = next((p for p in ("/usr/lib/chromium/chromium", shutil.which("chromium"),
                             shutil.which("chromium-browser"), shutil.which("google-chrome"))
                 if p and os.path.exists(p)), None)
KERNEL = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel?.status"
PICTURE = ":is(svg[role=img], .grpo-tokens)"
OF_NO_LESSON = {"@jupyter/nbgrader": True}  # it adds menus, and asks its server for a course
PATIENCE = 1_800_000  # ms, for what hangs: a machine may be ten times as slow as this one

# Times are taken in the page: from the key's own event to the first frame with the new picture.
WATCH = """box => {
  const pictures = () => [...box.querySelectorAll('svg[role=img], .grpo-tokens')];
  const before = new Set(pictures());
  window.followed = new Promise((resolve, reject) => {
    let pressed = null;
    const late = setTimeout(() => reject(new Error('no new picture')), PATIENCE);
    window.addEventListener('keydown', () => { pressed ??= performance.now(); },
                            {capture: true, once: true});
    const observer = new MutationObserver(() => {
      const now = pictures();
      if (pressed === null || !now.length || now.some(p => before.has(p))) return;
      observer.disconnect();
      clearTimeout(late);
      requestAnimationFrame(() => resolve(performance.now() - pressed));
    });
    observer.observe(box, {childList: true, subtree: true});
  });
}"""


def why_not() -> str | None:
    """Why no browser can be driven here, or None if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    if CHROMIUM is None:
        return "no Chromium or Chrome on this machine"
    try:
        import jupyterlab  # noqa: F401
    except ImportError:
        return "JupyterLab is not installed"
    return None


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab of its own over a copy of the repository in ``folder``:
    free port, own settings."""
    root = folder / "repository"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER{name}": str(folder / name) for name in
               ("_CONFIG_DIR", "_DATA_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR",
                "LAB_WORKSPACES_DIR")}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | folders
    settings = folder / "_CONFIG_DIR" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"disabledExtensions": OF_NO_LESSON}))
    with open(folder / "lab.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
             "--ServerApp.ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
             "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
             "--LabApp.expose_app_in_browser=True",
             f"--ServerApp.root_dir={root}"], env=environment, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(url + "/api/status", timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("JupyterLab did not start: "
                                       + (folder / "lab.log").read_text()[-2000:]) from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE / 1000)


@contextmanager
def browser() -> Iterator:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class NotebookPage:
    """One notebook, open in JupyterLab. ``problems`` are what a learner should never see."""

    def __init__(self, chromium, url: str, name: str, size: tuple[int, int] = (1366, 768),
                 dark: bool = False):
        self.url, self.name = url, name
        self.page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{url}/lab/tree/notebooks/{name}?reset")
        self.page.wait_for_function(f"{KERNEL} === 'idle'")
        if dark:
            self.page.evaluate("window.jupyterapp.commands.execute("
                               "'apputils:change-theme', {theme: 'JupyterLab Dark'})")

    def run_cell(self, number: int) -> str:
        """Run one cell, counted from 0, and wait for it; what it printed."""
        self.page.evaluate("""async number => {
          const panel = window.jupyterapp.shell.currentWidget;
          panel.content.activeCellIndex = number;
          await window.jupyterapp.commands.execute('notebook:run-cell');
        }""", number)
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(number)
        return "\n".join(cell.locator(".jp-OutputArea-output pre").all_inner_texts())

    def run_all(self) -> None:
        """Run every cell, and wait for the last."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def problems(self) -> list[str]:
        """Errors and warnings in the cells or in the page, after ``run_all``."""
        shown = []
        for mime in ("error", "stderr"):
            found = self.page.locator(f"[data-mime-type='application/vnd.jupyter.{mime}']")
            shown += [found.nth(i).inner_text() for i in range(found.count())]
        text = self.page.evaluate(
            "[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.innerText)"
            ".filter(t => /Error displaying widget|Traceback|Loading widget/.test(t))")
        return shown + text + self.errors

    def save(self) -> None:
        """As the disk's picture in the toolbar does."""
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    def restart(self) -> None:
        """The kernel: what it held is gone."""
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
                           ".restart()")

    def reload(self) -> None:
        """The page. What was not saved is lost."""
        self.page.once("dialog", lambda dialog: dialog.accept())
        self.page.reload()
        self.page.wait_for_function(f"{KERNEL} === 'idle'")

    def all_cells(self) -> list:
        """Every cell's element, the ones out of sight included."""
        return self.page.locator(".jp-Notebook .jp-Cell").all()

    def explorers(self) -> list:
        """The boxes of controls with a picture, in order; live curves and cockpits are none."""
        boxes = self.page.locator(f".widget-vbox:not(.grpo-cockpit):has({PICTURE})").all()
        return [box for box in boxes if box.locator(
            ".noUi-handle, input[type=checkbox], input[type=text], select").count()]

    def said(self, box) -> list[str]:
        """What the box's picture says to a screen reader."""
        return [box.locator(PICTURE).nth(i).get_attribute("aria-label")
                for i in range(box.locator(PICTURE).count())]

    def press(self, box, control, key: str) -> float:
        """Milliseconds from the key, on that control, to the first frame with a new picture."""
        control.focus()
        box.evaluate(WATCH.replace("PATIENCE", str(PATIENCE)))
        self.page.keyboard.press(key)
        return self.page.evaluate("window.followed")

    def move_slider(self, box, number: int, moves: int) -> list[float]:
        """Move a slider of the box back and forth; milliseconds for each move."""
        handle = box.locator(".noUi-handle").nth(number)
        handle.scroll_into_view_if_needed()
        times, key = [], "ArrowRight"
        for _ in range(moves):
            now, low, high = (float(handle.get_attribute(f"aria-value{x}"))
                              for x in ("now", "min", "max"))
            if now >= high:
                key = "ArrowLeft"
            elif now <= low:
                key = "ArrowRight"
            times.append(self.press(box, handle, key))
        return times

    def choose_another(self, box, menu) -> float:
        """Move a menu of the box by an arrow key; milliseconds. Its last name is left upwards."""
        last = menu.evaluate("menu => menu.selectedIndex === menu.length - 1")
        return self.press(box, menu, "ArrowUp" if last else "ArrowDown")

    def press_another(self, box, buttons) -> float:
        """Press, of a row of buttons, one that is not pressed, by the space bar; milliseconds."""
        other = buttons.locator("button:not(.mod-active)").first
        return self.press(box, other.element_handle(), "Space")

    def close(self) -> None:
        """Close the page and end its kernel."""
        self.page.close()
        sessions = json.load(urllib.request.urlopen(f"{self.url}/api/sessions"))
        for session in sessions:
            urllib.request.urlopen(urllib.request.Request(
                f"{self.url}/api/sessions/{session['id']}", method="DELETE")).close()
