"""``python -m grpo_lib project``: a lesson, or the cockpit alone, as a page without code, made by
Voilà (the ``projector`` extra)."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from grpo_lib.cli.environment import call, lessons
from grpo_lib.support.installed import install_command

CULL_SECONDS = 300
COCKPIT = ["from grpo_lib.course import set_up\n",
           "from grpo_lib.course.explorers import cockpit_explorer\n", "\n",
           "set_up()\n", "cockpit_explorer()"]


def project(root: Path, lesson: str | None = None, options: list[str] | None = None) -> int:
    """Serve a lesson (the beginning of its name) until Ctrl-C; None: the cockpit alone.

    A lesson's cells run before its page appears, so it takes as long as the lesson. ``options``
    go to Voilà. A page that is opened again starts anew; a kernel whose page is gone ends once it
    has been idle for ``CULL_SECONDS``. Returns its exit status. ImportError: Voilà is not
    installed; ValueError: no lesson, or more than one, is called so.
    """
    if importlib.util.find_spec("voila") is None:
        raise ImportError(f"project: Voilà is not installed; {install_command('projector')}")
    with tempfile.TemporaryDirectory(prefix="grpo_project_") as folder:
        if lesson is None:
            path = Path(folder) / "cockpit.ipynb"
            path.write_text(json.dumps(cockpit_page()), encoding="utf-8")
        else:
            names = sorted(lessons(root).glob("[0-9]*.ipynb"))
            found = [p for p in names if p.name.startswith(lesson)] if lesson else []
            if len(found) != 1:
                raise ValueError(f"lesson: got {lesson!r}, allowed is the beginning of one of "
                                 f"{', '.join(p.stem for p in names)}")
            path = found[0]
        culling = [f"--MappingKernelManager.cull_idle_timeout={CULL_SECONDS}",
                   f"--MappingKernelManager.cull_interval={CULL_SECONDS // 2}"]
        return call([sys.executable, "-m", "voila", str(path), *culling, *(options or [])], root)


def cockpit_page() -> dict:
    """A notebook that holds the cockpit and nothing else."""
    cell = {"cell_type": "code", "id": "cockpit", "metadata": {}, "execution_count": None,
            "outputs": [], "source": COCKPIT}
    return {"nbformat": 4, "nbformat_minor": 5, "cells": [cell], "metadata": {"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}}}


def run_project(options) -> int:
    """``python -m grpo_lib project``."""
    return project(Path(__file__).resolve().parents[2], options.lesson, [
        *([f"--port={options.port}"] if options.port else []),
        *(["--no-browser"] if options.no_browser else [])])
