"""The lessons as slides, to be shown with no network.

    python tools/slides.py [FOLDER] [--lesson 04]     needs the ``slides`` extra; FOLDER is slides/

Made from the saved notebooks, nothing is run: a section to the right, its steps downwards. What a
cell gives appears after the cell, and what to see after the question, a key press later. Open
FOLDER/04_clipping.html in a browser; S opens the speaker's window, with each section's minutes and
what to do (from docs/teaching/plans.md) and the answers to predictions; ? lists the keys.
Everything that the pages need is in FOLDER, so that it can be carried on a stick.
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import alive
from assets import copy_mathjax, copy_reveal, keep_pictures, need
from predictions import predictions

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
WIDTH, HEIGHT = 1280, 800  # of a slide, in its own pixels; it is scaled to the screen
LINES = 23  # of text on a slide
COLUMNS = 84
CODE_LINES, CODE_COLUMNS = 32, 104  # of code, which is smaller, and of its output
SET_UP = 2  # code cells at the top that find the library

TEMPLATE = """\
{% extends 'reveal/index.html.j2' %}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script>
MathJax = {tex: {inlineMath: [["$", "$"]], displayMath: [["$$", "$$"]], processEscapes: true,
                 packages: {"[+]": ["boldsymbol"]}},
           options: {enableMenu: false, ignoreHtmlClass: "highlight|jp-RenderedText"}};
</script>
<script src="assets/mathjax.js"></script>
{%- endblock -%}
{%- block body_header -%}
<link rel="stylesheet" href="assets/alive.css">
<style>
.reveal, .reveal .slides section, .jp-Notebook { font-size: 28px; line-height: 1.35; }
.reveal .slides { text-align: left; }
.reveal .slides section { height: 100%; }
.reveal h1, .reveal h2, .reveal h3 { text-transform: none; }
.reveal .jp-RenderedHTMLCommon { font-size: 28px; line-height: 1.35; width: 100%; }
.reveal .jp-RenderedHTMLCommon h1 { font-size: 54px; }
.reveal .jp-RenderedHTMLCommon h2 { font-size: 40px; }
.reveal .jp-RenderedHTMLCommon h3 { font-size: 33px; }
.reveal .jp-RenderedHTMLCommon table { font-size: 22px; margin-left: 0; }
.reveal .jp-RenderedHTMLCommon table td, .reveal .jp-RenderedHTMLCommon table th {
  white-space: normal; text-align: left; }
.reveal pre { width: 100%; margin: 0; box-shadow: none; font-size: 19px; line-height: 1.22; }
.reveal .highlight pre, .reveal .jp-OutputArea pre { font-size: 19px; line-height: 1.22; }
.reveal .jp-OutputArea-output { overflow: visible; }
.reveal img { max-height: 640px; max-width: 1200px; width: auto; height: auto; margin: 0; }
.reveal .jp-Cell, .reveal .jp-Notebook { padding: 2px; }
.reveal .grpo-alive { margin: 0; border: 0; padding: 0 8px; font-size: 22px; }
.reveal .grpo-view > svg { max-height: 430px; width: auto; }
</style>
{{ super() }}
{%- endblock -%}
{%- block footer_js -%}
<script src="assets/reveal/dist/reveal.js"></script>
<script src="assets/reveal/plugin/notes/notes.js"></script>
<script src="assets/alive.js"></script>
<script>
Reveal.initialize({controls: true, progress: true, hash: true, transition: "none",
                   slideNumber: "h.v", center: false, width: WIDTH, height: HEIGHT, margin: 0.03,
                   plugins: [RevealNotes]});
function fit() {  // a little too tall: drawn smaller; much too tall: can be scrolled
  const now = Reveal.getCurrentSlide();
  if (!now || now.dataset.fitted || now.scrollHeight <= HEIGHT) return;
  now.dataset.fitted = "yes";
  now.style.zoom = Math.max(0.75, HEIGHT / now.scrollHeight);
  if (now.scrollHeight > HEIGHT / now.style.zoom + 4) now.style.overflowY = "auto";
}
for (const event of ["ready", "slidechanged", "fragmentshown"]) Reveal.on(event, fit);
</script>
{%- endblock -%}
""".replace("WIDTH", str(WIDTH)).replace("HEIGHT", str(HEIGHT))


def slide(cell, kind: str):
    """The cell as a new slide ("slide"), one below it ("subslide"), or a part that appears at a
    key press ("fragment")."""
    cell = copy.deepcopy(cell)
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def lines_of(text: str) -> int:
    """How many lines a text takes on a slide, about: headings and formulas count more."""
    count = 0
    for line in text.splitlines():
        count += 1 + len(line) // COLUMNS + line.startswith("#") + (line.startswith("$$"))
    return count


def parts_of_text(text: str) -> list[str]:
    """A Markdown cell cut where a slide should end: before headings and before what is folded
    away, and between paragraphs where it is too long."""
    pieces = re.split(r"(?m)^(?=#{1,3} )|^(?=<details>)|(?<=</details>)\n", text)
    parts = []
    for piece in pieces:
        folded = re.fullmatch(r"\s*<details><summary>(.*?)</summary>(.*?)</details>\s*", piece,
                              re.DOTALL)
        if folded:
            piece = f"**{folded[1]}**\n\n{folded[2].strip()}"
        part = ""
        for paragraph in paragraphs(piece.strip()):
            if part and lines_of(part + paragraph) > LINES:
                parts.append(part)
                part = ""
            part += paragraph + "\n\n"
        parts.append(part)
    return [part.strip() for part in parts if part.strip()]


def paragraphs(text: str) -> list[str]:
    """Split at empty lines, but not inside code."""
    found, fenced = [""], False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        if not line.strip() and not fenced:
            found.append("")
        else:
            found[-1] += line + "\n"
    return [p.rstrip("\n") for p in found if p.strip()]


def notes_of(name: str) -> dict[str, str]:
    """{text on a slide: what the speaker's window then says}. For a section's heading this is its
    row in the plan for 50 minutes, for a prediction its answer."""
    plans = (ROOT / "docs" / "teaching" / "plans.md").read_text(encoding="utf-8")
    plan = plans.split(f"\n## {name}\n")[1].split("\n## ")[0].split("**90 minutes**")[0]
    rows = re.findall(r"(?m)^\| (\d+) \| (.*?) \| (.*?) \|$", plan)
    return {f"# {section}\n": f"{minutes} minutes. {what}" for minutes, section, what in rows} | {
        question: answer for _, question, answer in predictions(NOTEBOOKS / f"{name}.ipynb")}


def slides_of(notebook: nbformat.NotebookNode, name: str,
              notes: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """The notebook's cells cut into slides. ``notes``: those of ``notes_of``, for the speaker."""
    notebook, cells, set_up = copy.deepcopy(notebook), [], 0
    keep_pictures(notebook)
    alive.enliven(notebook, f"explorer-{name[:2]}")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for text in parts_of_text(cell.source):
                part = nbformat.v4.new_markdown_cell(text)
                kind = "slide" if re.match("##? ", text) else "subslide"
                cells.append(slide(part, kind))
                cells += [slide(nbformat.v4.new_markdown_cell(said), "notes")
                          for key, said in (notes or {}).items() if key in f"{text}\n"]
        elif cell.cell_type == "code":
            set_up += 1
            if set_up <= SET_UP or "exercise" in cell.metadata.get("tags", []):
                continue
            cells += slides_of_code(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def slides_of_code(cell) -> list:
    """The code, and what it gives a key press later: below it if there is room."""
    code, result = copy.deepcopy(cell), copy.deepcopy(cell)
    code.outputs, code.metadata["tags"] = [], []
    result.source, result["id"] = "", f"{cell.id}-result"
    result.metadata["tags"] = ["result"]
    for output in result.outputs:  # a picture says what its line of text says, for this purpose
        if "image/png" in output.get("data", {}):
            output.data.pop("text/plain", None)
    if not result.outputs:
        return [slide(code, "subslide")]
    if "hide-input" in cell.metadata.get("tags", []):
        return [slide(result, "subslide")]
    picture = any("image/png" in output.get("data", {}) or alive.moves(output)
                  for output in result.outputs)
    printed = sum(1 + len(line) // CODE_COLUMNS for output in result.outputs for line in (
        output.get("text") or output.get("data", {}).get("text/plain", "")).splitlines())
    fits = not picture and len(cell.source.splitlines()) + printed < CODE_LINES - 2
    return [slide(code, "subslide"), slide(result, "fragment" if fits else "subslide")]


def page(notebook: nbformat.NotebookNode, title: str) -> str:
    """The slides of a notebook as one HTML page."""
    from nbconvert import SlidesExporter
    from traitlets.config import Config

    exporter = SlidesExporter(raw_template=TEMPLATE, config=Config({
        "SlidesExporter": {"reveal_url_prefix": "assets/reveal", "reveal_theme": "white",
                           "exclude_input_prompt": True, "exclude_output_prompt": True},
        "TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"result"}}}))
    notebook = slides_of(notebook, title, notes_of(title))
    notebook.metadata["title"] = title
    return exporter.from_notebook_node(notebook)[0]


def build(target: Path, lesson: str = "") -> list[Path]:
    """Write the pages of the lessons whose names start so, and what they need. ValueError: none."""
    paths = sorted(p for p in NOTEBOOKS.glob("[0-9]*.ipynb") if p.name.startswith(lesson))
    if not paths:
        raise ValueError(f"lesson: got {lesson!r}, allowed are the beginnings of "
                         f"{', '.join(p.stem for p in sorted(NOTEBOOKS.glob('[0-9]*.ipynb')))}")
    copy_mathjax(target / "assets" / "mathjax.js")
    copy_reveal(target / "assets" / "reveal")
    for file in alive.FILES:
        shutil.copy(file, target / "assets")
    written = []
    for path in paths:
        text = page(nbformat.read(path, as_version=4), path.stem)
        # links to other pages of the repository lead nowhere on a stick: leave the names
        text = re.sub(r'<a href="(?!https?:|#)[^"]*"[^>]*>(.*?)</a>', r"\1", text)
        written.append(target / f"{path.stem}.html")
        written[-1].write_text(text, encoding="utf-8")
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make slides of the lessons.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "slides")
    parser.add_argument("--lesson", default="", help="how the notebook's name begins; all if left "
                                                     "out")
    options = parser.parse_args(arguments)
    need("nbconvert", "sphinx_revealjs", "sphinx-mathjax-offline")
    try:
        written = build(options.folder.expanduser(), options.lesson)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
