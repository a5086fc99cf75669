"""The static site: built whole, without a warning, every internal link and picture there.

Left out where the ``site`` extra is not installed.
"""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("grpo_site", ROOT / "tools" / "website.py")
maker = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(maker)
missing = [name for name in ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")
           if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed"),
              pytest.mark.filterwarnings("ignore::DeprecationWarning",
                                         "ignore::PendingDeprecationWarning")]


def test_every_notebook_and_document_has_its_page(site):
    for folder in ("notebooks", "docs"):
        for page in (p for kind in ("*.ipynb", "*.md") for p in (ROOT / folder).rglob(kind)):
            if ".ipynb_checkpoints" not in page.parts:
                assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file(), page
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "notebooks/08_algorithms.html" in index and "docs/glossary.html" in index


def test_no_page_of_a_students_lists_answers(site):
    """Keys, solutions and the forms themselves: in no list, and their text is not searched. The
    teachers' page leads to them, and a lesson to its own solution."""
    apart = [p.relative_to(ROOT).with_suffix(".html").as_posix() for p in (
        *(ROOT / "docs" / "teaching").glob("*.md"),
        *(ROOT / "notebooks" / "solutions").glob("*.ipynb"))]
    assert len(apart) > 15
    teachers = "docs/teaching/README.html"
    for page in site.rglob("*.html"):
        place = page.relative_to(site).as_posix()
        text = page.read_text(encoding="utf-8")
        lists = re.findall(r'<div class="(?:sidebar-tree|toctree-wrapper)[^>]*>.*?</div>', text,
                           re.DOTALL)
        assert lists or place not in ("index.html", "docs/glossary.html")
        for name in {Path(address).name for part in lists
                     for address in re.findall(r'href="([^"#]+)"', part)}:
            assert name not in {Path(a).name for a in apart}, (place, name)
    index = (site / "index.html").read_text(encoding="utf-8")
    assert [a for a in apart if f'"{a}"' in index] == [teachers]
    kit = (site / teachers).read_text(encoding="utf-8")
    assert all(f'"{Path(a).name}"' in kit for a in apart if "teaching" in a and a != teachers)
    search = (site / "searchindex.js").read_text(encoding="utf-8")
    words = json.loads(search[search.index("(") + 1:search.rindex(")")])
    numbers = {words["docnames"].index(a.removesuffix(".html")) for a in apart}
    for found in words["terms"].values():
        assert not numbers & set(found if isinstance(found, list) else [found])


class Pictures(HTMLParser):
    """The alt texts of a page's pictures, in order."""

    def __init__(self, page):
        super().__init__()
        self.alts = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


def test_every_saved_picture_is_shown_and_its_text_stands_for_it(site):
    """Who cannot see a picture is read the line that stands for it, and no file's name. That of an
    explorer, which moves, stands below it."""
    shown = moving = 0
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        pictures = [output for cell in cells for output in cell.get("outputs", [])
                    if "image/png" in output.get("data", {})]
        lines = [output["metadata"].get("image/png", {}).get("alt")
                 or "".join(output["data"]["text/plain"]) for output in pictures
                 if not maker.alive.table_of(output)]
        page = (site / path.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        assert [alt.split() for alt in Pictures(page).alts] == [
            line.split() for line in lines], path.name
        assert "widget-view" not in page and "Error displaying" not in page
        assert "grpo-mark" not in page and "require.js" not in page
        count = len(pictures) - len(lines)
        assert page.count('<figcaption role="status">') == count
        shown, moving = shown + len(lines), moving + count
    assert shown > 20 and moving > 30


def test_no_picture_is_without_words(site):
    for page in site.rglob("*.html"):
        for alt in Pictures(page.read_text(encoding="utf-8")).alts:
            assert alt and " " in alt and not alt.endswith((".png", ".svg")), (page.name, alt)


def test_nothing_is_left_beside_the_site(site):
    """By default it stands in the working tree, where nobody wants what the builder caches."""
    assert list(site.parent.iterdir()) == [site]
    assert not (ROOT / "jupyter_execute").exists()
    offered = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.ipynb"))
    lessons = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert offered == [f"_static/notebooks/{path.name}" for path in lessons]
    for path in lessons:  # as it is, to be run elsewhere
        assert (site / "_static" / "notebooks" / path.name).read_bytes() == path.read_bytes()


def test_nothing_in_it_names_a_place_on_a_machine(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert str(ROOT) not in text and "/tmp/" not in text


def test_no_page_fetches_anything(site):
    """Scripts, styles and pictures are all of the site, MathJax for the formulas too."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for address in re.findall(r"<(?:script|img|link)\b[^>]*\b(?:src|href)=\"([^\"]+)", text):
            assert not re.match(r"(?:https?:)?//", address), (page, address)
        assert "mjx-" not in text  # drawn by the page itself
        if "math notranslate" in text:
            assert "_static/mathjax.js" in text
    assert (site / "_static" / "mathjax.js").stat().st_size > 1_000_000


def test_a_broken_link_and_a_missing_picture_are_found(tmp_path):
    (tmp_path / "one.html").write_text('<a href="two.html#here">x</a><a href="two.html#gone">y</a>'
                                       '<img src="no.png"><a href="https://example.org">z</a>')
    (tmp_path / "two.html").write_text('<p id="here">here</p><a href="three.html">w</a>')
    assert sorted(maker.broken_links(tmp_path)) == [
        "one.html: no.png", "one.html: two.html#gone", "two.html: three.html"]
