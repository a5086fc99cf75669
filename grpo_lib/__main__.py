"""The command line: python -m grpo_lib pretrain | train | evaluate | handover | lab | test.

Each command has its own file in ``cli/``.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from pathlib import Path

from grpo_lib import __version__

ROOT = Path(__file__).resolve().parent.parent


def main(arguments=None) -> int:
    """Run a command. 0: done; 2: bad input, one line on stderr; 130: Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"grpo_lib {__version__}")
        return 0
    if arguments[:1] in (["lab"], ["notebooks"], ["test"], ["wheels"]):
        return setting_up(arguments[0], arguments[1:])
    from grpo_lib.support import threads

    try:
        threads.settle()  # before anything else, the parser too, imports torch
        from grpo_lib.cli.parser import parser

        options = parser().parse_args(arguments)
        if options.threads is not None:
            import torch

            torch.set_num_threads(options.threads)
        return options.run(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"grpo_lib: error: {message}", file=sys.stderr)
        return 2


def setting_up(name: str, arguments: list) -> int:
    from grpo_lib.cli import environment

    if arguments[:1] in (["-h"], ["--help"]):
        print(inspect.cleandoc(getattr(environment, name).__doc__))
        return 0
    try:
        return getattr(environment, name)(ROOT, arguments)
    except (environment.SetupError, OSError) as error:
        print(f"grpo_lib: error: {error}", file=sys.stderr)
        return 2


def one_line(message, *_) -> None:
    """A warning as a person on a command line wants it."""
    print(f"\ngrpo_lib: warning: {message}", file=sys.stderr, flush=True)


def start() -> None:
    """What ``python -m grpo_lib`` and the command ``grpo_lib`` do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows a "?"
            stream.reconfigure(errors="replace")
    warnings.showwarning = one_line
    status = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from grpo_lib.support.processes import leave

        leave(status)
    sys.exit(status)


if __name__ == "__main__":
    start()
