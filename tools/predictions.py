"""The predictions of all lessons with their answers, for whoever teaches them.

    python tools/predictions.py         writes docs/teaching/predictions.md from the saved notebooks

Every **Predict** of a lesson is listed under its section, with what the notebook says to it: the
fold below it ("What to see"), or else the text after its cell, with what that cell printed.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "teaching" / "predictions.md"
HEADING = re.compile(r"#{1,3} (.*)")
FOLD = re.compile(r"<details><summary>[^<]*</summary>\n(.*?)</details>", re.DOTALL)
PRINTED_LINES = 14  # of output that is worth a place here
TOP = """\
# Predictions, and what comes of them

Made from the saved notebooks by `python tools/predictions.py`; the numbers are those that the
notebooks print and that their tests compare. Let people write a guess down before the cell is
run: a wrong guess that was written down is remembered. What wrong guesses mean is in
[misconceptions](misconceptions.md), when to ask them in the [plans](plans.md).
"""


def blocks(path: Path) -> list[tuple[str, str]]:
    """A notebook as ("heading" | "text" | "printed", its text), in order, up to the exercises.

    A text is a paragraph, or a fold as a whole. "printed" is what a code cell printed, with the
    numbers of its figures; "" for nothing.
    """
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            printed = "".join(o.text if o.output_type == "stream" else numbers_of(o)
                              for o in cell.outputs)
            found.append(("printed", printed.strip("\n")))
            continue
        for paragraph in re.split(r"\n\n(?!(?:(?!<details>).)*?</details>)", cell.source,
                                  flags=re.DOTALL):
            heading = HEADING.fullmatch(paragraph.strip())
            if heading and heading[1] == "Exercises":
                return found
            found.append(("heading", heading[1]) if heading else ("text", paragraph.strip("\n")))
    return found


def numbers_of(output) -> str:
    """What a figure shows, in words; "" for curves that grew, whose end the lesson tells."""
    grew = "alt" in output.get("metadata", {}).get("image/png", {})
    return "" if grew else output.get("data", {}).get("text/plain", "")


def predictions(path: Path) -> list[tuple[str, str, str]]:
    """(section, question, answer) for every **Predict** of a notebook, in order."""
    found, section, lesson = [], "", blocks(path)
    for i, (kind, text) in enumerate(lesson):
        if kind == "heading":
            section = text
        elif kind == "text" and "**Predict" in text:
            found.append((section, text[text.index("**Predict"):], answer(lesson[i + 1:])))
    return found


def answer(after: list[tuple[str, str]]) -> str:
    """What a lesson says to a question: the first fold, or else what follows the first cell."""
    printed, said, ran = "", [], False
    for kind, text in after:
        if kind == "heading" or "**Predict" in text:
            break
        fold = FOLD.fullmatch(text)
        if fold and not said:
            return fold[1].strip()
        if kind == "printed":
            if said:
                break
            ran, printed = True, printed or text
        elif ran:
            said.append(text)
    if printed.count("\n") < PRINTED_LINES and printed:
        said.insert(0, f"```text\n{printed}\n```")
    return "\n\n".join(said)


def document() -> str:
    """The text of docs/teaching/predictions.md."""
    parts = [TOP]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        parts.append(f"\n## [`{path.stem}`](../../notebooks/{path.name})\n")
        last = None
        for section, question, said in predictions(path):
            if section != last:
                parts.append(f"\n### {path.stem[:2]}: {section}\n")
                last = section
            quoted = "\n".join(f"> {line}".rstrip() for line in said.splitlines())
            parts.append(f"\n{question}\n\n{quoted}\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {document().count('**Predict')} predictions")
