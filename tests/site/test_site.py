"""The static site: built whole, without a warning, every internal link and picture there.

Left out where the ``site`` extra is not installed.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("grpo_site", ROOT / "docs" / "site.py")
maker = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(maker)
missing = [name for name in ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")
           if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed"),
              pytest.mark.filterwarnings("ignore::DeprecationWarning",
                                         "ignore::PendingDeprecationWarning")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    assert maker.build(folder) == []
    return folder


def test_every_notebook_and_document_has_its_page(site):
    for folder in ("notebooks", "docs"):
        for page in (p for kind in ("*.ipynb", "*.md") for p in (ROOT / folder).rglob(kind)):
            if ".ipynb_checkpoints" not in page.parts:
                assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file(), page
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "notebooks/08_algorithms.html" in index and "docs/glossary.html" in index


def test_every_saved_picture_is_shown(site):
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        pictures = sum("image/png" in output.get("data", {}) for cell in cells
                       for output in cell.get("outputs", []))
        page = (site / path.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        assert page.count('<img alt=') >= pictures, path.name
        assert "widget-view" not in page and "Error displaying" not in page


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
        assert "mjx" not in text  # drawn by the page itself
        if "math notranslate" in text:
            assert "_static/mathjax.js" in text
    assert (site / "_static" / "mathjax.js").stat().st_size > 1_000_000


def test_a_broken_link_and_a_missing_picture_are_found(tmp_path):
    (tmp_path / "one.html").write_text('<a href="two.html#here">x</a><a href="two.html#gone">y</a>'
                                       '<img src="no.png"><a href="https://example.org">z</a>')
    (tmp_path / "two.html").write_text('<p id="here">here</p><a href="three.html">w</a>')
    assert sorted(maker.broken_links(tmp_path)) == [
        "one.html: no.png", "one.html: two.html#gone", "two.html: three.html"]
