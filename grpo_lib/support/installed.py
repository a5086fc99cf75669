"""Whether this is a checkout or an installed package, and what to type to get more of it.

Standard library only, and nothing newer than Python 3.7: the commands that install read it.
"""

from pathlib import Path


def is_checkout(root):
    """Whether ``root``, the folder above the package, is the repository or its source
    distribution. Otherwise the package is installed, and its notebooks lie inside it."""
    return (root / "pyproject.toml").is_file() and (root / "grpo_lib").is_dir()


def install_command(extra):
    """What to type to get an extra of the package."""
    form = '-e ".[%s]"' if is_checkout(Path(__file__).resolve().parents[2]) else '"grpo_lib[%s]"'
    return "pip install " + form % extra
