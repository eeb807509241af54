"""What a shell completes: names of runs, and the values of options that have few."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from charrnn.files import checkpoints, list_models


def runs(context: typer.Context) -> list[str]:
    """Return the names of all runs with a model, the newest first.

    Names with a space or a character that is special in some shell are left out: shells insert what they are given as
    it is, some evaluate it, and a folder of runs may be someone else's.
    """
    root = context.find_root().params.get("checkpoints")  # the option or its variable
    names = [path.parent.name for path in reversed(list_models(Path(root) if root else checkpoints()))]
    return [name for name in names if re.fullmatch(r"\w[\w.,+@%=-]*", name)]


def one_of(*values: str) -> Callable[[], list[str]]:
    """Return a function that completes these values."""
    return lambda: list(values)


def without_help(items: list[Any]) -> list[Any]:
    """Drop the help of what a shell completes: Typer would import rich for it, and break long lines for fish."""
    for item in items:
        item.help = None
    return items
