"""The lessons as a static site: every page with the outputs that are saved in it, and a home page.

    python tools/website.py [FOLDER]      needs the ``site`` extra; FOLDER is site/ below here

Explorers move there as they do in a notebook. Nothing is run and nothing is fetched, neither when
the pages are made nor when they are looked at: they can be opened from a stick. At the end every
internal link and every picture is looked up: exit status 1 if one is missing. ``tools/pages`` has
Sphinx's settings, the home page, and what makes explorers move.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import shutil
import sys
import tempfile
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path
from string import Template

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import alive
import front
from assets import copy_mathjax, keep_pictures, need

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "tools" / "pages"
DESCRIPTION = ("An interactive course on GRPO, the reinforcement learning behind DeepSeek-R1: ten "
               "notebooks on a small, exact PyTorch library. Explorers move in the browser.")
# What gives answers away, and the forms that are handed out: in no list and found by no search
APART = {"orphan": True, "nosearch": True}


def gather(folder: Path) -> None:
    """The site's sources: notebooks and documents under their own paths, and the home page."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks",
                    ignore=shutil.ignore_patterns(".*", "__pycache__", "*.py"))
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns(".*"))
    # links to code lead nowhere on the site: leave the name
    for page in (*folder.rglob("*.md"), *folder.rglob("*.ipynb")):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r'\[([^\]"\n]*)\]\(\.\./grpo_lib/[^)"\n]*\)', r"\1", text),
                        encoding="utf-8")
    for page in list(folder.rglob("*.ipynb")):
        notebook = json.loads(page.read_text(encoding="utf-8"))
        if page.parent.name == "notebooks":
            offer(page, notebook, folder / "_static" / "notebooks")
        keep_pictures(notebook)
        alive.enliven(notebook, f"explorer-{page.stem[:2]}")
        page.write_text(json.dumps(notebook), encoding="utf-8")
    shutil.copy(ROOT / "recordings" / "results.md", folder / "docs" / "results.md")
    shutil.copy(ROOT / "benchmarks" / "results.md", folder / "docs" / "speed.md")
    for page in (folder / "docs" / "teaching").glob("*.md"):
        top = "".join(f"{name}: true\n" for name in APART)
        page.write_text(f"---\n{top}---\n\n{page.read_text(encoding='utf-8')}", encoding="utf-8")
    for page in (folder / "notebooks" / "solutions").glob("*.ipynb"):
        notebook = json.loads(page.read_text(encoding="utf-8"))
        notebook["metadata"] |= APART
        page.write_text(json.dumps(notebook), encoding="utf-8")
    lessons = [f"{path.stem[:2]} {title_of(path)} <notebooks/{path.stem}>"
               for path in sorted((folder / "notebooks").glob("[0-9]*.ipynb"))]
    documents = [f"docs/{path.stem}" for path in sorted((folder / "docs").glob("*.md"))]
    (folder / "index.md").write_text(home(folder, {
        "lessons": "\n".join(lessons), "documents": "\n".join(documents)}), encoding="utf-8")


def title_of(path: Path) -> str:
    return re.match(r"# (.*)", nbformat.read(path, as_version=4).cells[0].source)[1]


def offer(page: Path, notebook: dict, downloads: Path) -> None:
    """Say below a lesson's title how to run it, with the notebook itself to download."""
    downloads.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "notebooks" / page.name, downloads)
    title, _, rest = "".join(notebook["cells"][0]["source"]).partition("\n")
    notebook["cells"][0]["source"] = f"""{title}

<p class="grpo-run"><b>Run this lesson:</b>
<a href="../_static/notebooks/{page.name}" download>download the notebook</a>, or open it in the
course's folder with <code>python3 -m grpo_lib lab</code></p>
{rest}"""


def home(folder: Path, lists: dict[str, str]) -> str:
    """The home page: the run to play, ways in, and a card for each lesson. Pictures go into
    ``folder``/_static."""
    first = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    place = front.written_in(first)
    run = next(cell for cell in first.cells if cell.get("id") == "whole-run")
    [packed] = [table for output in run.outputs if (table := alive.table_of(output))]
    cloud = ("<p>Open a lesson's file there (Colab, Kaggle, a hub) and run its first cell, which "
             "fetches the rest.</p>")
    if place.repository:
        cloud = "<p>Nothing to install; the first cell fetches the rest.</p><p>" + " ".join(
            f'<a href="{address}"><img alt="{name}" src="{picture}"></a>'
            for name, picture, address in re.findall(
                r"\[!\[([^\]]*)\]\(([^)]*)\)\]\(([^)]*)\)", front.badges(
                    "00_start_here.ipynb", place))) + "</p>"
    clone = f"git clone {place.url} grpo\ncd grpo\n" if place.url else ""
    return Template((PAGES / "index.md").read_text(encoding="utf-8")).substitute(
        lists, description=DESCRIPTION, player=alive.fragment(packed, "explorer-home", True),
        cloud=cloud, clone=clone, cards="\n".join(cards(folder)))


def cards(folder: Path):
    """A card for each row of the README's table of lessons, with the lesson's first picture."""
    pictures = folder / "_static"
    pictures.mkdir(exist_ok=True)
    rows = re.findall(r"(?m)^\| \[`(\w+)`\]\(notebooks/[^)]*\) \| (.*?) \| (.*?) \|$",
                      (ROOT / "README.md").read_text(encoding="utf-8"))
    for stem, about, time in rows:
        notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
        title = title_of(ROOT / "notebooks" / f"{stem}.ipynb")
        first = next(output.data for cell in notebook.cells for output in cell.get("outputs", [])
                     if alive.table_of(output))
        picture = pictures / f"{stem}.png"
        picture.write_bytes(base64.b64decode(first["image/png"]))
        if stem.startswith("00"):
            shutil.copy(picture, pictures / "card.png")
        said = html.escape(first["text/plain"].splitlines()[0])
        yield (f'<a href="notebooks/{stem}.html"><img src="_static/{picture.name}" '
               f'alt="From the lesson: {said}"><b>{stem[:2]} &nbsp;{html.escape(title)}</b><span>'
               f'You can {html.escape(about)}.</span><small>Runs in {html.escape(time)}</small>'
               f'</a>')


def describe(app, doctree) -> None:
    """Give every picture of an output the output's text as its alt text.

    Sphinx would put the file's name there, which tells nothing to who cannot see the picture.
    """
    from docutils import nodes

    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") == "mime_bundle":
            text = {kind["mime_type"]: kind.astext() for kind in bundle.children}
            for image in bundle.findall(nodes.image):
                image["alt"] = " ".join(text["text/plain"].split())


def build(target: Path) -> list[str]:
    """Build into ``target`` and return what is wrong with it, a line each.

    All is made in a temporary folder and the pages copied from there: myst-nb puts pictures
    *beside* the folder that it is told to build into.
    """
    from sphinx.application import Sphinx

    with tempfile.TemporaryDirectory(prefix="grpo_site_") as work:
        source, warnings, pages = (Path(work) / name for name in ("source", "warnings", "pages"))
        source.mkdir()
        gather(source)
        with open(warnings, "w", encoding="utf-8") as said:
            app = Sphinx(str(source), str(PAGES), str(pages), str(Path(work) / "doctrees"), "html",
                         status=None, warning=said, freshenv=True)
            app.connect("doctree-read", describe)
            app.build()
        shutil.copytree(pages, target, dirs_exist_ok=True)
        shutil.copytree(source / "_static", target / "_static", dirs_exist_ok=True)
        copy_mathjax(target / "_static" / app.config.mathjax_path)
        found = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in
                 warnings.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [line.replace(str(source), "") for line in found] + broken_links(target)


class Links(HTMLParser):
    """The addresses that a page leads to, and the places that it has."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        for name in ("href", "src"):
            if attrs.get(name) and tag in ("a", "img", "link", "script"):
                self.targets.append(attrs[name])


def broken_links(site: Path) -> list[str]:
    """Internal links and pictures of a site that lead nowhere, "page: address"."""
    pages = {}
    for page in site.rglob("*.html"):
        pages[page.resolve()] = links = Links()
        links.feed(page.read_text(encoding="utf-8"))
    broken = []
    for page, links in pages.items():
        for address in links.targets:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else (
                page)
            place = urllib.parse.unquote(parts.fragment)
            if not target.exists() or (place and target in pages
                                       and place not in pages[target].places):
                broken.append(f"{page.relative_to(site.resolve())}: {address}")
    return broken


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the lessons as a static site.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "site")
    target = parser.parse_args(arguments).folder.expanduser()
    need("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")
    problems = build(target)
    print("\n".join([*problems, f"{len(list(target.rglob('*.html')))} pages in {target}"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
