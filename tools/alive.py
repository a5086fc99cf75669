"""Explorers that move on a page without a kernel: controls, the first picture, and the table of all
others, which ``alive.js`` plays. The table comes with the saved notebook."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from grpo_lib.course.explorers.frames import rows_of, unpacked

FILES = [Path(__file__).parent / "pages" / name for name in ("alive.js", "alive.css")]


def enliven(notebook: dict, name: str) -> None:
    """Put a box that moves in the place of every picture that brings its table. ``name`` makes the
    boxes' ids differ from those of other pages."""
    count = 0
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            table = table_of(output)
            if table:
                count += 1
                output["metadata"].pop("grpo_lib")
                output["data"] = {"text/html": fragment(table, f"{name}-{count}")}


def table_of(output: dict) -> str | None:
    """The packed table that an output brings, if it does."""
    return output.get("metadata", {}).get("grpo_lib", {}).get("frames")


def moves(output: dict) -> bool:
    """Whether an output is a box that moves."""
    return 'class="grpo-alive"' in output.get("data", {}).get("text/html", "")


def fragment(packed: str, ident: str, autoplay: bool = False) -> str:
    """The box of a packed table: it shows the state in which the explorer was saved. With
    ``autoplay`` a run plays by itself, once, unless the reader's system asks for less motion."""
    table = unpacked(packed)
    number = 0
    for control in table["controls"]:
        number = number * len(control["names"]) + control["start"]
    caption, *picture = list(rows_of(table))[number]
    seen = re.sub(r'(id="|href="#|url\(#)F(?=\d)', rf"\g<1>{ident}-", "".join(picture))
    seen = seen.replace("<svg ", f'<svg aria-label="{html.escape(caption)}" ', 1)
    more = ""
    if table["more"]:
        more = (f'<p class="grpo-more">In the notebook there are more values of '
                f'{html.escape(", ".join(table["more"]))}.</p>')
    kind = "grpo-alive grpo-autoplay" if autoplay else "grpo-alive"
    return (f'<figure class="{kind}" id="{ident}"><fieldset disabled>'
            f'{"".join(controls_of(table))}</fieldset><div class="grpo-view">{seen}</div>'
            f'<figcaption role="status">{html.escape(caption)}</figcaption>{more}'
            f'<script type="text/plain" class="grpo-table">{packed}</script></figure>')


def controls_of(table: dict) -> Iterator[str]:
    for control in table["controls"]:
        label, start = html.escape(control["label"]), control["start"]
        names = [html.escape(name) for name in control["names"]]
        if control["kind"] == "switch":
            checked = " checked" if start else ""
            yield f'<label><input type="checkbox"{checked}><span>{label}</span></label>'
        elif control["kind"] == "again":
            yield f'<button type="button" value="{start}">{label}</button>'
        elif control["kind"] == "choice":
            options = "".join(f'<option value="{i}"{" selected" if i == start else ""}>{name}'
                              f'</option>' for i, name in enumerate(names))
            yield f'<label><span>{label}</span><select>{options}</select></label>'
        else:
            play = ""
            if control["kind"] == "play":
                play = '<button type="button" class="grpo-play" aria-label="Play">▶</button>'
            yield (f'<div class="grpo-range">{play}<label><span>{label}</span><input type="range" '
                   f'min="0" max="{len(names) - 1}" step="1" value="{start}" aria-valuetext='
                   f'"{names[start]}"><output>{names[start]}</output></label></div>')
