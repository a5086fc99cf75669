"""What the cockpit costs a run, and how quickly it answers while the run goes on, in JupyterLab.

In one go: the same run of 20 steps in a cell and in the cockpit, in turns, while a slider of the
cockpit is moved two or three times a second: epsilon between the row's and 0.0003, which with
one update a batch clips nothing, so that both do the same work. The cockpit draws meanwhile. The
time is that from the start to the end of the last step; the picture that the notebook keeps is
drawn after it.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from pathlib import Path

from benchmarks.browser import PATIENCE, NotebookPage, browser, jupyterlab, why_not  # noqa: F401
from grpo_lib.cli.runs import versions

ROUNDS, STEPS, PAUSE_MS, MOVED = 5, 30, 350, "epsilon"
NAME = "98_cockpit.ipynb"
CELLS = [
    "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path.cwd().parent))\n"
    "import json, time\nimport grpo_lib.course\nfrom grpo_lib import GRPOConfig\n"
    "from grpo_lib.course.explorers import cockpit_explorer\n"
    "from grpo_lib.course.explorers.cockpit import chain_trainer\n"
    "grpo_lib.course.set_up()\n"
    f"config = GRPOConfig(steps={STEPS}, minibatches=1)",
    "trainer = chain_trainer(config)\nstart = time.perf_counter()\n"
    "for _ in trainer.run():\n    pass\nprint(time.perf_counter() - start)",
    "cockpit = cockpit_explorer(config=config)\nstamps = []\nfollow = cockpit.run.on_change\n"
    "cockpit.run.on_change = lambda: (stamps.append(time.perf_counter()), follow())\n"
    "pictures = []\ncockpit.over.observe(lambda change: pictures.append(1), 'value')\ncockpit",
    "print(json.dumps([stamps[-1] - stamps[0], cockpit.run.state, len(pictures)]))",
]
# From the key to the first frame in which the cockpit's line says another value than before.
WATCH = r"""box => {
  const said = () => [...box.querySelector('[role=status]').innerText.matchAll(
    /\bepsilon ([^;,\n]+?)(?= from step|[;,\n]|$)/g)].at(-1)?.[1];
  const before = said();
  window.answered = new Promise((resolve, reject) => {
    let pressed = null;
    const late = setTimeout(() => reject(new Error('no answer')), PATIENCE);
    window.addEventListener('keydown', () => { pressed = performance.now(); },
                            {capture: true, once: true});
    const observer = new MutationObserver(() => {
      if (pressed === null || said() === before) return;
      observer.disconnect();
      clearTimeout(late);
      requestAnimationFrame(() => resolve(performance.now() - pressed));
    });
    observer.observe(box, {childList: true, subtree: true, characterData: true});
  });
}"""


def notebook(cells: list[str]) -> str:
    import nbformat

    return nbformat.writes(nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3",
                                 "language": "python"}}))


def measure() -> dict:
    """Seconds of the run in a cell and in the cockpit, and milliseconds from keys to answers."""
    plain, steered, answers, drawn = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as url, \
            browser() as chromium:
        (Path(folder) / "repository" / "notebooks" / NAME).write_text(notebook(CELLS))
        page = NotebookPage(chromium, url, NAME)
        page.run_cell(0)
        for _ in range(ROUNDS):
            plain.append(float(page.run_cell(1)))
            page.run_cell(2)
            box = page.page.locator(".grpo-cockpit")
            of_it = re.compile(rf"^\s*{MOVED}(?!_)")
            handle = box.locator(".widget-slider", has_text=of_it).locator(".noUi-handle")
            box.get_by_role("button", name="Start").click()
            while "finished" not in box.locator("[role=status]").first.inner_text():
                answers.append(press(page, box, handle))
                page.page.wait_for_timeout(PAUSE_MS)
            seconds, state, pictures = json.loads(page.run_cell(3))
            steered.append(seconds)
            drawn.append(pictures)
            print(plain[-1], steered[-1], state, pictures, len(answers), flush=True)
    return {"steps": STEPS, "plain_seconds": plain, "cockpit_seconds": steered,
            "pictures": drawn, "answers_ms": [round(a) for a in answers], "versions": versions()}


def press(page: NotebookPage, box, handle) -> float:
    """Move the slider off its left end or back, and wait for the line to say so; milliseconds."""
    handle.focus()
    box.evaluate(WATCH.replace("PATIENCE", str(PATIENCE)))
    at_left = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin")
    page.page.keyboard.press("ArrowRight" if at_left else "ArrowLeft")
    return page.page.evaluate("window.answered")


def report(data: dict) -> str:
    plain, steered = (statistics.median(data[k]) for k in ("plain_seconds", "cockpit_seconds"))
    answers = sorted(data["answers_ms"])
    return "\n".join([
        "## Cockpit", "",
        f"A run of {data['steps']} steps in JupyterLab on {data['versions']['cpus']} cores, in a "
        f"cell and in the cockpit, in turns; medians of {len(data['plain_seconds'])} "
        f"(two minutes).", "",
        "| | |", "|---|---|",
        f"| seconds in a cell | {plain:.2f} |",
        f"| seconds in the cockpit, its slider moved two or three times a second | {steered:.2f} "
        f"({steered / plain - 1:+.0%}) |",
        f"| pictures drawn meanwhile (median) | {statistics.median(data['pictures']):.0f} |",
        f"| from a key to the frame that says so, while it trains: median of {len(answers)} | "
        f"{statistics.median(answers):.0f} ms |",
        f"| nine in ten of them within | {answers[int(0.9 * (len(answers) - 1))]} ms |"]) + "\n"
