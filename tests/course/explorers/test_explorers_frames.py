"""The table of all states: each is what the live explorer shows, nothing seen is slimmed away."""

import html
import itertools
import json
import re
from pathlib import Path

import ipywidgets
import pytest
import torch

from grpo_lib import ChainTask
from grpo_lib.course import plots
from grpo_lib.course.explorers import (
    Explorer,
    LiveCurves,
    clip_explorer,
    frames,
    group_size_explorer,
    run_explorer,
    verifier_explorer,
)
from grpo_lib.course.explorers.controls import again, choice, player, slider, stops, switch, words
from grpo_lib.course.recorded import load

NOTEBOOKS = sorted((Path(__file__).parents[3] / "notebooks").glob("[0-9]*.ipynb"))


def small(page=None, **controls):
    """An explorer that draws its values as a curve."""
    def draw(**values):
        heights = [len(str(value)) for value in values.values()]
        figure = plots.lines(range(len(heights)), {"one": heights}, str(values), "x", "y")
        return figure, f"{values}"
    return Explorer(draw, page, **controls)


def shown(explorer):
    """(caption, pieces) as the live explorer has them now."""
    view = re.sub(r' aria-label="[^"]*"', "", explorer.view.value, count=1)
    return [explorer.text, *frames.pieces_of(view)]


def states(explorer):
    """Every state of the table, with the values of the controls there."""
    shown = frames.stops_shown(explorer)
    for values in itertools.product(*([v for _, v in some] for some in shown.values())):
        yield dict(zip(shown, values))


@pytest.mark.parametrize("make", [
    lambda: small(a=slider("a", 1, 0, 2, 1), b=switch("b", False)),
    lambda: small({"a": (0.0, 0.5)}, a=slider("a", 0.5, 0.0, 1.0, 0.1), c=choice("c", "x", "xyz")),
    lambda: small(n=again("n", 3), s=stops("s", 4, (2, 4))),
    lambda: group_size_explorer([float(i % 5 == 0) for i in range(128)],
                                [f"answer <{i}>" for i in range(128)], [4] * 128),
])
def test_a_state_of_the_table_is_what_the_live_explorer_shows(make):
    explorer = make()
    table = frames.unpacked(frames.packed(frames.table_of(explorer)))
    rows = list(frames.rows_of(table))
    every = list(states(explorer))
    assert len(rows) == len(every) > 1
    for row, values in zip(rows, every):
        explorer.set(**values)
        assert row == shown(explorer), values


def test_controls_are_told_as_they_stand():
    explorer = small({"a": (0.0, 0.5), "t": [("nothing", "")], "hidden": None},
                     a=slider("a (units)", 0.5, 0.0, 1.0, 0.1), c=choice("c", "y", "xyz"),
                     b=switch("b", True), s=stops("s", 4, (2, 4)), n=again("n", 2),
                     p=player("p", 2, 2), t=words("t", "start"), hidden=choice("h", "q", "qr"))
    table = frames.table_of(explorer)
    controls = {control["label"]: control for control in table["controls"]}
    assert controls == {
        "a (units)": {"label": "a (units)", "kind": "range", "names": ["0.0", "0.5"], "start": 1},
        "c": {"label": "c", "kind": "choice", "names": ["x", "y", "z"], "start": 1},
        "b": {"label": "b", "kind": "switch", "names": ["off", "on"], "start": 1},
        "s": {"label": "s", "kind": "range", "names": ["2", "4"], "start": 1},
        "n": {"label": "n", "kind": "again", "names": ["1", "2"], "start": 0},
        "p": {"label": "p", "kind": "play", "names": ["0", "1", "2"], "start": 2}}
    assert table["more"] == ["a (units)", "t"]


def test_too_many_states_and_stops_that_there_are_not():
    with pytest.raises(ValueError, match=r"page: leaves 10201 states, allowed are 1300"):
        frames.table_of(small(a=slider("a", 0, 0, 100, 1), b=slider("b", 0, 0, 100, 1)))
    with pytest.raises(ValueError, match=r"page: got \[5\] for a, allowed are 0, 1"):
        frames.table_of(small({"a": [5]}, a=slider("a", 0, 0, 1, 1)))


def test_a_line_of_text_becomes_a_choice_of_examples():
    explorer = verifier_explorer(ChainTask().held_out(1)[0])
    table = frames.table_of(explorer)
    assert [control["kind"] for control in table["controls"]] == ["choice"]
    assert len(table["rows"]) == len(table["controls"][0]["names"]) == 15
    assert table["more"] == ["completion"]


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", text)]


def test_slimming_leaves_every_curve_and_every_text():
    """Coordinates to a tenth of a point; texts, colours and widths as they were."""
    svg = plots.to_svg(clip_explorer().figure, "")
    slim = "".join(frames.slim(svg))
    assert len(slim) < len(svg) / 2
    texts = re.compile(r">([^<>\s][^<>]*)</text>")
    assert texts.findall(slim) == texts.findall(svg) != []

    def kept(text):
        return [d for d in re.findall(r'<path [^>]*?\bd="([^"]*)"', text) if numbers(d)]
    paper = len(kept(svg)) - len(kept(slim))
    assert paper == 3  # the figure's ground and those of two axes
    long = [d for d in kept(svg) if len(numbers(d)) > 8]
    long_slim = [d for d in kept(slim) if len(numbers(d)) > 8]
    for a, b in zip(long[-len(long_slim):], long_slim, strict=True):
        assert numbers(a) == pytest.approx(numbers(b), abs=0.051)
    for color in ("#0072b2", "#d55e00"):
        assert slim.count(f"stroke:{color}") == svg.count(f"stroke: {color}") > 0
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', slim))
    assert referred == set(re.findall(r' id="([^"]*)"', slim)) and referred


def test_pictures_of_one_view_have_ids_of_their_own():
    one = plots.to_svg(small(a=slider("a", 1, 0, 2, 1)).figure, "")
    slim = "".join(frames.pieces_of(f"<div>{one}</div><div>{one}</div>"))
    ids = re.findall(r' id="([^"]*)"', slim)
    assert len(ids) == len(set(ids)) > 2 and slim.startswith("<div><svg")
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', slim)) == set(ids)


def test_a_difference_is_undone():
    for old, new in ([[], [1, 2]], [[1, 2, 3], [1, 4, 3, 5]], [[1, 2], []], [[3, 1], [3, 1]]):
        row = list(old)
        for start, stop, instead in reversed(frames.difference(old, new)):
            row[start:stop] = instead
        assert row == new
    assert frames.difference([1, 2], [1, 2]) == []


@pytest.mark.parametrize("figure, cuts", [
    (lambda: plots.new_figure()[0], 0), (lambda: plots.new_figure(3)[0], 2),
    (lambda: plots.new_figure(2, 2)[0], 1)])
def test_a_figure_is_cut_between_its_panels(figure, cuts):
    figure = figure()
    figure.draw_without_rendering()
    found = frames.cuts_of(figure)
    assert len(found) == cuts
    edges = sorted({round(a.get_position().x1, 6) for a in figure.axes})
    assert all(edge <= cut <= 1 for edge, cut in zip(edges, found))


def test_a_table_is_kept_where_it_is_wanted(monkeypatch):
    explorer = small(a=slider("a", 1, 0, 2, 1))
    monkeypatch.delenv(frames.WANTED, raising=False)
    assert explorer._to_display()[1] == {}
    monkeypatch.setenv(frames.WANTED, "1")
    data, metadata = explorer._to_display()
    table = frames.unpacked(metadata["grpo_lib"]["frames"])
    assert len(table["rows"]) == 3 and data["text/plain"] == explorer.text


def test_live_curves_are_played_again(monkeypatch):
    from test_explorers import metrics

    curves = LiveCurves(3)
    monkeypatch.setenv(frames.WANTED, "1")
    assert "grpo_lib" not in LiveCurves(3)._to_display()[1]
    for step in (1, 2):
        curves.add(metrics(step, accuracy=step / 4, held_out_accuracy=None, length_right=None))
    curves.redraw()
    metadata = curves._to_display()[1]
    assert metadata["image/png"]["alt"] == curves.text
    table = frames.unpacked(metadata["grpo_lib"]["frames"])
    captions = [row[0] for row in frames.rows_of(table)]
    assert captions[0] == "0 of 3 steps" and captions[2] == curves.text and len(captions) == 3
    assert table["controls"][0]["kind"] == "play" and table["controls"][0]["start"] == 2


def test_a_recorded_run_is_played():
    record = load("player")
    explorer = run_explorer(record)
    last = record["steps"][-1]
    assert f"{last['held_out_accuracy']:.0%} of held-out problems right" in explorer.text
    explorer.set(step=0)
    assert explorer.text.startswith("step 0 of 40: of 8 fresh answers")
    assert "A group" not in explorer.view.value
    explorer.set(step=7)
    said = record["steps"][7]
    assert all(html.escape(text) in explorer.view.value for some in said["answers"]
               for text, _ in some if text)
    assert explorer.view.value.count("✓") == sum(ok for some in said["answers"] for _, ok in some)
    for row in said["group"]["rows"]:
        assert f"A {row['advantage']:+.2f}" in explorer.view.value


def test_what_was_recorded_is_true():
    """The answers' marks are the verifier's own, the problems are held out, and a group teaches."""
    task, record = ChainTask(), load("player")
    held_out = {task.describe(p): p for p in task.held_out(500)}
    problems = [held_out[p["asked"]] for p in record["problems"]]
    for step in record["steps"]:
        for problem, said in zip(problems, step["answers"]):
            for text, right in said:
                assert task.correct(problem, text) == right
        if step["step"]:
            rewards = {row["reward"] for row in step["group"]["rows"]}
            assert len(rewards) > 1 and all(row["advantage"] > 0 for row in step["group"]["rows"]
                                            if row["reward"] == max(rewards))
    assert torch.tensor([s["tokens"] for s in record["steps"][1:]]).min() > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_explorer_of_a_lesson_brings_its_table(path):
    """And its text is the caption of the state in which it was saved. Where a cockpit stands, pages
    have recorded runs."""
    outputs = [output for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
               for output in cell.get("outputs", [])]
    live = [before for before, mark in itertools.pairwise(outputs)
            if "grpo-mark" in "".join(mark.get("data", {}).get("text/html", ""))]
    assert live
    for output in live:
        text = "".join(output["data"]["text/plain"])
        packed = output["metadata"]["grpo_lib"]["frames"]
        table = frames.unpacked(packed)
        number = 0
        for control in table["controls"]:
            number = number * len(control["names"]) + control["start"]
        caption = list(frames.rows_of(table))[number][0]
        alt = output["metadata"].get("image/png", {}).get("alt", text)
        assert caption == alt or ("to steer" in text and "recorded run" in caption)
        assert len(packed) < 133_000, "100 kB of a page"


def test_ipywidgets_of_every_kind_are_known():
    for control, kind in ((slider("x", 1, 0, 2, 1), "range"),
                          (slider("x", 1.0, 0, 2, 0.5), "range"),
                          (choice("x", "a", "ab"), "choice"), (stops("x", 1, (1, 2)), "range"),
                          (switch("x", True), "switch"), (words("x", ""), "choice"),
                          (again("x", 2), "again"), (player("x", 0, 3), "play")):
        assert isinstance(control, ipywidgets.Widget) and frames.kind_of(control) == kind
