"""The lessons as slides: all that the lessons show is on them, and they fetch nothing.

Left out where the ``slides`` extra is not installed; the second half needs Chromium and playwright.
"""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import slides as maker

ROOT = Path(__file__).parents[2]
PACKAGES = ("nbconvert", "sphinx_revealjs", "sphinx-mathjax-offline")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed"),
              pytest.mark.filterwarnings("ignore::DeprecationWarning",
                                         "ignore::PendingDeprecationWarning")]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
chromium = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or chromium is None,
    reason="needs chromium and playwright")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All slides, in a folder whose name has a blank in it."""
    target = tmp_path_factory.mktemp("slides") / "on a stick"
    assert [p.stem for p in maker.build(target)] == [p.stem for p in LESSONS]
    return target


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
class TestLesson:
    def test_every_picture_text_and_code_is_there(self, path, folder):
        notebook = nbformat.read(path, as_version=4)
        cells = [c for c in notebook.cells if "exercise" not in c.metadata.get("tags", [])]
        page = (folder / f"{path.stem}.html").read_text(encoding="utf-8")
        pictures = [output for cell in cells for output in cell.get("outputs", [])
                    if "image/png" in output.get("data", {})]
        moving = sum(maker.alive.table_of(output) is not None for output in pictures)
        assert page.count('src="data:image/png;base64') == len(pictures) - moving
        assert page.count('class="grpo-alive"') == moving > 0
        assert "grpo-mark" not in page and "widget-view" not in page
        words = set(re.findall(r"[a-z]{4,}", re.sub("<[^>]+>", " ", page).lower()))
        for cell in [c for c in cells if c.cell_type == "markdown"]:
            text = re.sub(r"\$[^$]+\$|\([^)]*\)|<[^>]+>|`[^`]*`", " ", cell.source.lower())
            assert set(re.findall(r"[a-z]{4,}", text)) <= words
        for heading in re.findall(r"(?m)^## (.+)$", "\n".join(c.source for c in cells)):
            assert heading.split()[0] in page

    def test_the_speaker_has_the_minutes_and_the_answers(self, path, folder):
        page = (folder / f"{path.stem}.html").read_text(encoding="utf-8")
        notes = re.findall(r'(?s)<aside class="notes">(.*?)</aside>', page)
        asked = sum(c.source.count("**Predict") for c in nbformat.read(path, as_version=4).cells)
        minutes = [note for note in notes if re.search(r"\d+ minutes\.", note)]
        assert len(minutes) >= 6 and len(notes) == len(minutes) + asked

    def test_no_slide_has_too_much_text(self, path):
        for cell in maker.slides_of(nbformat.read(path, as_version=4), path.stem).cells:
            if cell.cell_type == "markdown":
                assert len(cell.source.splitlines()) <= maker.LINES + 12, cell.source

    def test_the_page_names_nothing_outside_its_folder(self, path, folder):
        page = (folder / f"{path.stem}.html").read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|link|img)[^>]*?(?:src|href)=\"([^\"]*)\"", page)
        assert tags and all(t.startswith(("assets/", "data:")) for t in tags)
        for tag in tags:
            assert tag.startswith("data:") or (folder / tag).is_file(), tag
        assert "import mermaid" not in page and str(ROOT) not in page


def test_a_question_stands_before_its_answer():
    cell = nbformat.v4.new_markdown_cell(
        "## 1. One\n\ntext\n\n**Predict:** what?\n\n<details><summary>What to see</summary>\n\n"
        "this\n</details>\n\nmore\n\n### Below\n\nlast")
    run = nbformat.v4.new_code_cell("print(1)", outputs=[
        nbformat.v4.new_output("stream", text="1\n")])
    made = maker.slides_of(nbformat.v4.new_notebook(cells=[cell, run]), "x").cells
    kinds = [(c.metadata.slideshow.slide_type, c.source.split("\n")[0]) for c in made]
    assert kinds[:4] == [("slide", "## 1. One"), ("subslide", "**What to see**"),
                         ("subslide", "more"), ("subslide", "### Below")]
    assert len(made) == 4  # the first two code cells are the lesson's set-up


def test_what_a_cell_gives_comes_after_it():
    printed = nbformat.v4.new_code_cell("print(1)", outputs=[
        nbformat.v4.new_output("stream", text="1\n")])
    drawn = nbformat.v4.new_code_cell("draw()", outputs=[
        nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "in words"})])
    long = nbformat.v4.new_code_cell("show()", outputs=[
        nbformat.v4.new_output("stream", text="x\n" * 40)])
    silent = nbformat.v4.new_code_cell("a = 1")
    kinds = {cell.source: [c.metadata.slideshow.slide_type for c in maker.slides_of_code(cell)]
             for cell in (printed, drawn, long, silent)}
    assert kinds == {"print(1)": ["subslide", "fragment"], "draw()": ["subslide", "subslide"],
                     "show()": ["subslide", "subslide"], "a = 1": ["subslide"]}
    code, result = maker.slides_of_code(drawn)
    assert code.outputs == [] and result.source == ""
    assert list(result.outputs[0].data) == ["image/png"] and len(drawn.outputs[0].data) == 2


def test_code_is_never_cut():
    text = "a\n\n```python\nx = 1\n\n\ny = 2\n```\n\nb"
    assert maker.paragraphs(text) == ["a", "```python\nx = 1\n\n\ny = 2\n```", "b"]


def test_an_unknown_lesson_is_named(tmp_path, capsys):
    assert maker.main([str(tmp_path), "--lesson", "12"]) == 2
    assert "lesson: got '12', allowed are the beginnings of 00_start" in capsys.readouterr().err
    assert maker.main([str(tmp_path), "--lesson", "00"]) == 0
    assert [p.name for p in tmp_path.glob("*.html")] == ["00_start_here.html"]


@needs_chromium
def test_in_a_browser_with_no_network_everything_is_drawn(folder):
    from playwright.sync_api import sync_playwright

    asked, said = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.context.set_offline(True)
        page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(
            ("file:", "data:")) else None)
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: said.append(str(error)))
        for path in LESSONS:
            page.goto((folder / f"{path.stem}.html").as_uri())
            page.wait_for_function("window.Reveal && Reveal.isReady()")
            page.evaluate("MathJax.startup.promise.then(() => null)")
            slides = page.evaluate("""() => Reveal.getSlides().map(slide => {
                const {h, v} = Reveal.getIndices(slide);
                Reveal.slide(h, v, 99);
                const zoom = Number(slide.style.zoom || 1);
                return {text: slide.innerText.slice(0, 60), tall: slide.scrollHeight * zoom,
                        wide: slide.scrollWidth * zoom, scroll: slide.style.overflowY};})""")
            cut = [s for s in slides if s["wide"] > 1300 or (
                s["tall"] > 806 and s["scroll"] != "auto")]
            assert len(slides) > 30 and not cut, (path.name, cut)
            long = [s["text"] for s in slides if s["scroll"] == "auto"]
            assert len(long) <= 2, (path.name, long)
            pictures = page.evaluate("[...document.images].map(i => i.naturalWidth)")
            moving = page.locator(".grpo-view").count()
            assert all(pictures) and len(pictures) + moving >= 3 and moving > 0
            text = json.dumps([c.source for c in nbformat.read(path, as_version=4).cells])
            formulas = page.evaluate("""[document.querySelectorAll("mjx-container svg").length,
                document.querySelectorAll("mjx-merror, [data-mjx-error]").length]""")
            assert formulas[0] >= text.count("$$") // 2 and formulas[1] == 0, path.name
        browser.close()
    assert not asked and not said
