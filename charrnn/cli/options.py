"""Options that several commands share, and the groups that `--help` shows options in.

An option that the user doesn't give is None; its default lives in config.py and is shown from there.
"""

import functools
from typing import Annotated, Any

import typer

from charrnn.config import CorpusConfig, SampleConfig, SourceConfig, TrainConfig

network_option = functools.partial(typer.Option, rich_help_panel="Network")
budget_option = functools.partial(typer.Option, rich_help_panel="Budget")
learning_option = functools.partial(typer.Option, rich_help_panel="Learning")
text_option = functools.partial(typer.Option, rich_help_panel="Reading the text")
run_option = functools.partial(typer.Option, rich_help_panel="Run")
machine_option = functools.partial(typer.Option, rich_help_panel="Machine")
output_option = functools.partial(typer.Option, rich_help_panel="Output")
ending_option = functools.partial(typer.Option, rich_help_panel="Length")
drawing_option = functools.partial(typer.Option, rich_help_panel="Sampling")


def default(
    config: type[CorpusConfig] | type[SampleConfig] | type[SourceConfig] | type[TrainConfig], field: str
) -> Any:
    """What help shows as the default of a setting."""
    return str(getattr(config, field))


def given(**options: Any) -> dict[str, Any]:
    """The settings that the user gave, by field."""
    return {name: value for name, value in options.items() if value is not None}


Json = Annotated[bool, output_option("--json", help="Print JSON, one object per line.")]
Quiet = Annotated[bool, output_option("--quiet", "-q", help="Print only errors on stderr.")]
Device = Annotated[str, machine_option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, machine_option(help="CPU threads. [default: all available cores]")]
Encoding = Annotated[str | None, text_option(help="Text encoding.", show_default=default(CorpusConfig, "encoding"))]
Errors = Annotated[
    str | None,
    text_option(
        help="Invalid bytes: strict (stop) or replace (continue with U+FFFD).",
        show_default=default(CorpusConfig, "errors"),
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Run name or model file. [default: the newest model in ./checkpoints]"),
]
