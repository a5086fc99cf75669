"""What stands in pyproject.toml, and what is made from it: requirements, links, versions."""

import re
from pathlib import Path

import metadata
import pytest

import grpo_lib

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = metadata.tomllib.loads(TEXT)["project"]
URL = "https://github.com/somebody/a-fork"
LINK = re.compile(r"(?<!!)\[[^\[\]]*\]\(([^)]*)\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]*)\)")
# with links that are to stay as they are: absolute, and within the page
README = (ROOT / "README.md").read_text(encoding="utf-8") + (
    "\n[a](https://a.org/b) [c](#the-library) [d](mailto:e@f.org) ![g](https://a.org/h.png)\n")


def on_an_index(text):
    """README as a package built with this pyproject.toml shows it."""
    hook = metadata.tomllib.loads(text)["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    shown = README
    for substitution in hook["substitutions"]:
        shown = re.sub(substitution["pattern"], substitution["replacement"], shown)
    return shown


def test_requirements_are_written_from_the_metadata():
    written = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert written == metadata.requirements(TEXT), "run tools/metadata.py"
    assert {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]} == {
        line for line in written.splitlines() if not line.startswith("#")}


def test_todays_torch_and_pythons_are_allowed():
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    [torch] = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch"]
    for allowed in ("2.9.0", "2.11.0", "2.14.1", "2.15.0", "2.15.1+cpu"):
        assert torch.specifier.contains(allowed), allowed
    for python in ("3.10", "3.13", "3.14", "3.15"):
        assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_no_other_file_names_a_bound():
    """Of torch, or the newest Python: they would have to be changed together."""
    for path in [*ROOT.glob("grpo_lib/**/*.py"), *ROOT.glob("tools/*.py")]:
        assert not re.search(r"torch[<>=]=|\(3, 1[1-9]\)(?!:)", path.read_text(encoding="utf-8"))


def test_the_readme_says_which_pythons_are_allowed_and_tested():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    tested = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert f"Python {oldest} or newer (tested on {tested[0]} to {tested[-1]})" in README


def test_the_wheel_takes_the_whole_package_and_the_lessons():
    """Weights and logs among them: tests/wheel looks into one."""
    build = metadata.tomllib.loads(TEXT)["tool"]["hatch"]["build"]
    assert build == {"dev-mode-dirs": ["."], "targets": {"wheel": {
        "only-include": ["grpo_lib", "notebooks"],
        "sources": {"notebooks": "grpo_lib/notebooks"}}}}


def test_classifiers_and_keywords_are_there_and_the_types_too():
    assert {"Typing :: Typed", "Intended Audience :: Education"} <= {*PROJECT["classifiers"]}
    assert "GRPO" in PROJECT["keywords"]
    assert (ROOT / "grpo_lib" / "py.typed").is_file()


def test_the_version_is_the_same_everywhere():
    version = grpo_lib.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
                          re.MULTILINE)
    assert released[0] == version


def test_with_an_address_every_link_and_picture_works_on_an_index():
    shown = on_an_index(metadata.address_written(TEXT, URL))
    for kind, way in ((PICTURE, "raw"), (LINK, "blob")):
        before, after = kind.findall(README), kind.findall(shown)
        assert len(before) == len(after) > 0
        for relative, absolute in zip(before, after):
            if re.match(r"\w+:|#", relative):
                assert absolute == relative
            else:
                assert absolute == f"{URL}/{way}/main/{relative}"
                assert (ROOT / relative.partition("#")[0]).exists()


def test_without_an_address_the_readme_is_as_it_is():
    bare = metadata.address_written(TEXT, "")
    assert on_an_index(bare) == README
    assert "urls" not in metadata.tomllib.loads(bare)["project"]


@pytest.mark.parametrize("url", [URL, "https://github.com/the/original", ""])
def test_an_address_replaces_the_one_before(url):
    bare = metadata.address_written(TEXT, "")
    once = metadata.address_written(bare, url)
    assert metadata.address_written(metadata.address_written(bare, "https://x.y/z"), url) == once
    assert metadata.address_written(once, "") == bare
    urls = metadata.tomllib.loads(once)["project"].get("urls", {})
    assert {u.startswith(url) for u in urls.values()} == ({True} if url else set())


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_pages_at_the_top_lead_somewhere(name):
    for link in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        assert re.match(r"\w+:|#", link) or (ROOT / link.partition("#")[0]).exists(), link
