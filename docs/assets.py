"""Scripts that the site's and the slides' pages need, found in installed packages so that the
pages work with no network. Those packages are the ``site`` and ``slides`` extras."""

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
