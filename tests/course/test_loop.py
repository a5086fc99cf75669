"""The drawing of the loop: what is lit, in the picture and in its text."""

import json
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from grpo_lib.course.loop import BOXES, loop
from grpo_lib.course.plots import BLUE

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))


def lit_in(picture):
    [axis] = picture.figure.axes
    boxes = [patch for patch in axis.patches if hasattr(patch, "get_boxstyle")]
    return [name for name, patch in zip(BOXES, boxes)
            if to_hex(patch.get_facecolor()).lower() == BLUE.lower()]


def test_the_named_boxes_are_lit_and_no_others():
    assert lit_in(loop("kl", "loss")) == ["kl", "loss"]
    assert loop("kl").text.endswith("This lesson is about: KL and entropy: how far from the start?")
    assert lit_in(loop()) == list(BOXES) and "a problem; policy" in loop().text
    with pytest.raises(ValueError, match="lit: got 'critic', allowed are problem, policy, "):
        loop("critic")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_lesson_shows_it(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    [cell] = [cell for cell in cells if cell["id"] == "loop"]
    assert cells.index(cell) < 8 and cell["metadata"]["jupyter"]["source_hidden"]
