"""How large the package is: ``python tools/size.py`` counts lines, modules and functions.

Lines are all lines of a file, docstrings and blank ones too. A function's are those of its body
without the docstring.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "grpo_lib"
CORE = ("tokenizer", "policy", "transformer", "tasks", "rollout", "advantages", "objective",
        "algorithms", "config", "training")
MODULE, FUNCTION = 350, 50  # lines that none should have more of


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines of its body) of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, node.end_lineno - body[0].lineno + 1 if body else 0


def main() -> None:
    lines = {path.relative_to(PACKAGE): len(path.read_text(encoding="utf-8").splitlines())
             for path in sorted(PACKAGE.rglob("*.py"))}
    parts: dict[str, int] = {}
    for path, count in lines.items():
        core = path.parts[0].removesuffix(".py") in CORE
        part = "core" if core else path.parts[0] if len(path.parts) > 1 else "beside the core"
        parts[part] = parts.get(part, 0) + count
    for part, count in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{count:7,}  {part}")
    print(f"{sum(lines.values()):7,}  all, in {len(lines)} modules")
    long = [f"{path} {count}" for path, count in lines.items() if count > MODULE]
    print(f"\n{len(long)} modules of more than {MODULE} lines:", ", ".join(long) or "-")
    found = [(count, f"{path}:{name}") for path in lines
             for name, count in functions(PACKAGE / path)]
    longest = sorted((f for f in found if f[0] > FUNCTION), reverse=True)
    print(f"{len(longest)} of {len(found)} functions of more than {FUNCTION} lines:",
          ", ".join(f"{name} {count}" for count, name in longest) or "-")
    print("median of a function:", statistics.median(count for count, _ in found), "lines")


if __name__ == "__main__":
    main()
