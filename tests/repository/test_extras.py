"""What needs an extra says so in one line where it is missing; elsewhere nothing is asked here."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
POLICY = ("from grpo_lib.bridges.huggingface import HuggingFacePolicy as P; "
          "P.from_pretrained('x/y'{})")
NEEDS = {  # extra: (what it brings, what asks for it)
    "site": (["sphinx", "myst_nb", "furo", "sphinx-mathjax-offline"], ["tools/website.py", "{}"]),
    "slides": (["sphinx_revealjs", "sphinx-mathjax-offline"], ["tools/slides.py", "{}"]),
    "projector": (["voila"], ["-m", "grpo_lib", "project"]),
    "llm": (["transformers"], ["-c", POLICY.format("")]),
    "llm, adapters": (["peft"], ["-c", POLICY.format(", lora_rank=2")]),
}


@pytest.mark.parametrize("extra", NEEDS)
def test_a_missing_extra_is_named_in_one_line(extra, tmp_path):
    packages, command = NEEDS[extra]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip(f"{', '.join(packages)}: installed")
    done = subprocess.run([sys.executable, *[c.format(tmp_path / "pages") for c in command]],
                          cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    said = done.stderr.strip().splitlines()
    assert done.returncode and missing[0].replace("voila", "Voilà") in said[-1]
    assert re.search(r'pip install -e "\.\[[\w,]*' + extra.split(",")[0], said[-1])
    assert len(said) == 1 or command[0] == "-c", "a traceback is for who called it from Python"
    assert not (tmp_path / "pages").exists(), "and nothing is left behind"


def test_every_extra_has_its_cell_in_the_matrix():
    """.ci/noxfile.py names each extra of pyproject.toml but those that only work on the library."""
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = metadata.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    cells = (ROOT / ".ci" / "noxfile.py").read_text(encoding="utf-8").split("TESTS = {")[1]
    cells = {*re.findall(r'^    "(\w+)": \(', cells, re.MULTILINE)}
    assert cells == {*extras - {"test", "dev"}, "none", "Colab"}
