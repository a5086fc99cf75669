"""What the site and the slides share: notebooks without their live parts; and scripts that the
pages need, found in installed packages so that the pages work with no network. Those packages are
the ``site`` and ``slides`` extras."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path


def need(*packages: str) -> None:
    """SystemExit, in one line, for what the extras would have brought."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)}: not installed; in the checkout: "
                 f"pip install -e \".[site,slides]\"")


def of_package(name: str, inside: str) -> Path:
    """A file or folder of an installed package. SystemExit names what to install."""
    need(name)
    spec = importlib.util.find_spec(name)
    return Path(next(iter(spec.submodule_search_locations))) / inside


def keep_pictures(notebook: dict) -> None:
    """Drop what only a live notebook needs of an explorer's three outputs (grpo_lib's
    ``explorers/outputs.py``). A picture's description, if it has one, becomes its text."""
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = [o for o in cell["outputs"] if not only_live(o.get("data", {}))]
        for output in cell["outputs"]:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                output["data"]["text/plain"] = alt


def only_live(data: dict) -> bool:
    """Whether an output is nothing but a live view, or the mark before it."""
    if "application/vnd.jupyter.widget-view+json" in data:
        return "image/png" not in data
    return 'class="grpo-mark"' in "".join(data.get("text/html", ""))


def copy_mathjax(target: Path) -> None:
    """MathJax 3 as one file, which draws formulas as SVG and so needs no fonts beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(of_package("sphinx-mathjax-offline", "static/mathjax/tex-svg-full.js"), target)


def copy_reveal(target: Path) -> None:
    """reveal.js: its style, one theme, the script and the speaker's notes."""
    source = of_package("sphinx_revealjs", "_static/revealjs")
    for part in ("dist/reveal.js", "dist/reveal.css", "dist/reset.css", "dist/theme/white.css",
                 "plugin/notes/notes.js", "LICENSE"):
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / part, target / part)
    shutil.copytree(source / "dist" / "theme" / "fonts", target / "dist" / "theme" / "fonts",
                    dirs_exist_ok=True)
