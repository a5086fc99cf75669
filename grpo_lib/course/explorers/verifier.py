"""One completion before several verifiers: who accepts it, and who is wrong to."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, words
from grpo_lib.course.flawed import VERIFIERS, Verifier, verdicts
from grpo_lib.course.plots import BLACK, FONT, GREY, RIGHT, WRONG, new_figure
from grpo_lib.tasks.base import Problem

SHOWN = 64  # characters of a completion that the picture has room for


def tricky(answer: str) -> list[tuple[str, str]]:
    """(what it is, the text): completions to try on a verifier before a policy does."""
    other = str((int(answer) + 3) % 10)
    every = " ".join("0123456789")
    return [("right, wrong steps", f"s1={other} s2={answer} => {answer}"),
            ("right, at once", f"=> {answer}"),
            ("right, then a word more", f"=> {answer} {answer}"),
            ("wrong", f"=> {other}"),
            ("wrong, right digit in a step", f"s1={answer} s2={other} => {other}"),
            ("wrong, right digit in a marker", f"s{answer}={other} => {other}"),
            ("two answers, right first", f"=> {answer} => {other}"),
            ("two answers, right last", f"=> {other} => {answer}"),
            ("every digit", f"=> {every}"),
            ("no arrow", answer),
            ("arrow and nothing", "=>"),
            ("nothing", ""),
            ("padding before the answer", f"=> <pad> {answer}"),
            ("a calculation", f"=> {other}+{(int(answer) - int(other)) % 10}"),
            ("very long", f"{f's1={other} ' * 100}=> {other}")]


def verifier_explorer(problem: Problem,
                      verifiers: Sequence[Verifier] = VERIFIERS) -> Explorer:
    """A line to type a completion in, and a menu of tricky ones to start from.

    The first of ``verifiers`` is taken for the right one.
    """
    examples = tricky(problem.answer)
    text = words("completion", examples[0][1])
    example = choice("start from", examples[0][1], examples)
    example.observe(lambda change: setattr(text, "value", change["new"]), "value")

    def draw(completion: str, **_):
        said = verdicts(problem, completion, verifiers)
        truth = said[0]
        wrong = {accepts: [v.name for v, a in zip(verifiers, said) if a == accepts != truth]
                 for accepts in (True, False)}
        shown = ascii(completion if len(completion) <= SHOWN
                      else f"{completion[:SHOWN - 12]} ... {completion[-7:]}")
        line = (f"{shown}, right answer {problem.answer}: {verifiers[0].name} "
                f"{'accepts' if truth else 'refuses'}; wrong to accept: "
                f"{', '.join(wrong[True]) or 'none'}; wrong to refuse: "
                f"{', '.join(wrong[False]) or 'none'}")
        return picture(shown, problem.answer, verifiers, said), line

    explorer = Explorer(draw, {"completion": examples, "example": None}, completion=text)
    explorer.controls["example"] = example  # draws by way of the text, so only once
    explorer.panel.children = (text, example)
    return explorer


def picture(shown: str, answer: str, verifiers: Sequence[Verifier],
            said: Sequence[bool]) -> Figure:
    """A row a verifier: its name, what it looks at, its verdict, and whether that is wrong."""
    figure, axis = new_figure(width=9.4, height=0.42 * len(verifiers) + 1.1)
    axis.set_axis_off()
    axis.set_xlim(0, 1)
    axis.set_ylim(len(verifiers) - 0.4, -0.6)
    axis.set_title(f"{shown}     (right answer: {answer})", fontsize=FONT, loc="left",
                   parse_math=False)
    for row, (verifier, accepts) in enumerate(zip(verifiers, said)):
        fine = accepts == said[0]
        verdict = f"{'accepts' if accepts else 'refuses'}{'' if fine else '  WRONG'}"
        axis.text(0.0, row, verifier.name, fontsize=FONT, color=BLACK, va="center")
        axis.text(0.19, row, verifier.looks_at, fontsize=FONT - 1, color=GREY, va="center")
        axis.text(0.79, row, f"{'✓' if fine else '✗'} {verdict}", fontsize=FONT,
                  color=RIGHT if fine else WRONG, va="center",
                  fontweight="normal" if fine else "bold")
    return figure
