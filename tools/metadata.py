"""What follows from pyproject.toml: requirements.txt, and links that work on a package index.

    python tools/metadata.py        after changing a dependency

``address_written`` puts a repository's address into pyproject.toml: its URLs, and what the
README's relative links become where a package index shows it.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Everything the notebooks and the tests need. Written by tools/metadata.py from pyproject.toml,
# which says why each is here.
"""


def requirements(text: str) -> str:
    """requirements.txt for the pyproject.toml ``text``: the dependencies and the test extra."""
    project = tomllib.loads(text)["project"]
    return HEAD + "".join(line + "\n" for line in [*project["dependencies"],
                                                   *project["optional-dependencies"]["test"]])


def address_written(text: str, url: str, branch: str = "main") -> str:
    """The pyproject.toml ``text`` with a repository's ``url`` on GitHub; empty: with none."""
    text = re.sub(r"\[project\.urls\]\n(?:.+\n)+\n", "", text)
    if url:
        urls = (f'[project.urls]\nRepository = "{url}"\nIssues = "{url}/issues"\n'
                f'Changelog = "{url}/blob/{branch}/CHANGELOG.md"\n\n')
        text = text.replace("[project.scripts]\n", urls + "[project.scripts]\n")
    for kind, way in (("pictures", "raw"), ("links", "blob")):
        base = f"{url}/{way}/{branch}/" if url else ""
        text, count = re.subn(rf"(substitutions\]\] # {kind}\n.*\nreplacement = ').*'",
                              lambda m, base=base: f"{m[1]}\\1{base}'", text)
        assert count == 1, f"pyproject.toml: no substitution of {kind}"
    return text


def main() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (ROOT / "requirements.txt").write_text(requirements(text), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
