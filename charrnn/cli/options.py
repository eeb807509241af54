"""Options that several commands share, and the sections in which `--help` lists options.

An option that the user doesn't give is None; its default lives in config.py and is shown from there.
"""

import difflib
import functools
import itertools
import os
import shlex
import typing
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from charrnn.config import FORMATS, CorpusConfig, ListConfig, SampleConfig, SourceConfig, TrainConfig
from charrnn.errors import UsageError
from charrnn.inspection.findings import PARTS
from charrnn.terminal import completion, console
from charrnn.terminal.completion import one_of
from charrnn.text.characters import one_line

ALL_PARTS = "all"
NARROW = 60  # columns; below, an option's help starts on a line of its own
# What other tools call options; those that mean exactly the same are aliases of ours.
FOREIGN_NAMES = {
    "--block-size": "--seq-len",
    "--bptt": "--seq-len",
    "--epochs": "--steps or --minutes",
    "--iterations": "--steps",
    "--max-epochs": "--steps or --minutes",
    "--max-iters": "--steps",
    "--max-length": "--length",
    "--max-tokens": "--length",
    "--num-epochs": "--steps or --minutes",
    "--output": "--run",
    "--prime": "--prompt",
    "--rnn-size": "--hidden-size",
    "--rnn-type": "--cell",
    "--sequence-length": "--seq-len",
    "--start": "--prompt",
    "--units": "--hidden-size",
    "--wd": "--weight-decay",
}

network_option = functools.partial(typer.Option, rich_help_panel="Network")
learning_option = functools.partial(typer.Option, rich_help_panel="Learning")
text_option = functools.partial(typer.Option, rich_help_panel="Reading the text")
machine_option = functools.partial(typer.Option, rich_help_panel="Machine")
output_option = functools.partial(typer.Option, rich_help_panel="Output")
filter_option = functools.partial(typer.Option, rich_help_panel="Filters")
constraint_option = functools.partial(typer.Option, rich_help_panel="Constraints")
end_option = functools.partial(typer.Option, rich_help_panel="End of the text")
list_option = functools.partial(typer.Option, rich_help_panel="Lists")


def default(config: type[CorpusConfig | ListConfig | SampleConfig | SourceConfig | TrainConfig], field: str) -> Any:
    """Return a setting's default as help shows it."""
    return show(getattr(config, field))


def show(value: object) -> str:
    """Return a default as help shows it; empty for None."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def given(**options: Any) -> dict[str, Any]:
    """Return the settings that the user gave, by field."""
    return {name: value for name, value in options.items() if value is not None}


class Command(TyperCommand):
    """A command whose help is plain text that fits the terminal, with the options in sections."""

    allow_extra_args = True  # so that parse_args can say which they are

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, add_all_parts(args) if self.name == "eval" else args)
        if rest and not ctx.resilient_parsing:
            word = shlex.quote(rest[0])
            advice = f"name a model with -m {word}, or a prompt with -p {word}" if self.name == "sample" else ""
            raise UsageError(f"unexpected argument {one_line(rest[0])!r}; {advice or help_hint(ctx)}")
        return rest

    def get_help_option(self, ctx: Any) -> Any:
        return with_print_help(super().get_help_option(ctx))

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        return completion.without_help(super().shell_complete(ctx, incomplete))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(str(one.metavar) for one in self.params if one.param_type_name == "argument")]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_sections(self, ctx, formatter)


def add_all_parts(args: list[str]) -> list[str]:
    """Add "all" after each --inside that no part follows: the parser would take the next argument, such as TEXT.

    A misspelt part is taken for one, unless there is a file of that name.
    """
    named = []
    for arg, after in itertools.pairwise([*args, ""]):
        named.append(arg)
        is_part = after in (*PARTS, ALL_PARTS)
        is_misspelt = not is_part and difflib.get_close_matches(after, PARTS) and not os.path.exists(after)
        if arg == "--inside" and "--" not in named and not (is_part or is_misspelt):
            named.append(ALL_PARTS)
    return named


def choose_parts(names: list[str] | None) -> tuple[str, ...]:
    """Return the parts of --inside that the user named, in their order. Raises UsageError for an unknown one."""
    names = names or []
    for name in names:
        if name not in (*PARTS, ALL_PARTS):
            raise UsageError(f"--inside has no part {one_line(name)!r}; the parts are {', '.join(PARTS)}")
    return PARTS if ALL_PARTS in names else tuple(part for part in PARTS if part in names)


class Group(TyperGroup):
    """A group of commands with the same help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            advice = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(self.commands)}"
            raise UsageError(f"no command {one_line(args[0])!r}; {advice}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        return completion.without_help(super().shell_complete(ctx, incomplete))

    def get_help_option(self, ctx: Any) -> Any:
        return with_print_help(super().get_help_option(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, first_paragraph(command.help or "")) for name, command in self.commands.items()]
        write_section(formatter, "Commands", commands)
        write_sections(self, ctx, formatter)


def with_print_help(option: Any) -> Any:
    """Make `--help` print like every result, so that a reader that closes the pipe ends it quietly."""
    option.callback = print_help
    return option


def print_help(context: typer.Context, _option: object, is_wanted: bool) -> None:
    """Print a command's help and exit, if `--help` was given."""
    if is_wanted and not context.resilient_parsing:
        console.result(context.get_help())
        raise typer.Exit


def mistake(error: Any) -> str:
    """Say in one line what the parser's error is about and what to do. Its own words name types of Python's."""
    context, kind = getattr(error, "ctx", None), type(error).__name__
    if kind == "NoSuchOption":
        return f"no option {one_line(error.option_name)}; {_right_name(error.option_name, context)}"
    if kind == "BadOptionUsage":
        problem = "takes no value" if "does not take" in error.message else "needs a value"
        return f"{error.option_name} {problem}"
    if kind == "MissingParameter":
        return f"{error.param.metavar.rstrip('.')} is missing; {help_hint(context)}"
    if kind == "BadParameter" and isinstance(error.__cause__, ValueError):
        invalid: Any = error.__cause__  # has the value, which the parser's message lacks
        value = one_line(str(invalid.errors()[0]["input"]))
        wanted = "a whole number" if "integer" in error.message else "a number"
        option = next(name for name in error.param.opts if name.startswith("--"))
        return f"{option} {value!r} is not {wanted}; {help_hint(context)}"
    return f"{error.format_message().rstrip('.')}; {help_hint(context)}"


def _right_name(name: str, context: Any) -> str:
    """Say which option was meant by a name that doesn't exist."""
    known = [option for parameter in context.command.get_params(context) for option in parameter.opts]
    named = FOREIGN_NAMES.get(name.replace("_", "-"), "")
    if named.split(" ")[0] in known:
        return f"use {named}"
    root = context.find_root()
    if root is not context and any(name in parameter.opts for parameter in root.command.get_params(root)):
        return f"it comes before the command: charrnn {name} … {context.info_name}"
    if name in ("-m", "--model"):  # of sample and eval
        return f"name the model without it: {context.command_path} MODEL"
    near = [option for option in known if option.startswith(name)] if name.startswith("--") else []
    near = near or difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.7)
    return f"did you mean {' or '.join(near[:3])}?" if near else help_hint(context)


def help_hint(context: Any) -> str:
    """Say where the help of a command is."""
    return f"see {context.command_path if context else 'charrnn'} --help"


def write_sections(command: Any, context: typer.Context, formatter: Any) -> None:
    """Write a command's arguments, its options without a section, and the other options by section."""
    hints = typing.get_type_hints(command.callback)
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        title = parameter.rich_help_panel or f"{parameter.param_type_name.title()}s"
        row = names(parameter, hints.get(parameter.name)), description(parameter)
        sections.setdefault(title, []).append(row)
    for title, rows in sections.items():
        write_section(formatter, title, rows)


def write_section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    """Write rows of a name and a text, if there are any; in a narrow terminal each text starts on a line of its own."""
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=24 if formatter.width >= NARROW else 4)


def first_paragraph(text: str) -> str:
    """Return a docstring's first paragraph as one line."""
    return " ".join(text.split("\n\n")[0].split())


def names(parameter: Any, hint: object) -> str:
    """Return a parameter's names as help lists them, the short one first, and what its value is called."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar).strip("[]")
    shown = ", ".join(sorted(parameter.opts, key=lambda name: name.startswith("--")))
    if parameter.secondary_opts:
        shown += f" / {', '.join(parameter.secondary_opts)}"
    if parameter.is_flag:
        return shown
    kinds = {hint, *typing.get_args(hint)}
    return f"{shown} {parameter.metavar or ('N' if int in kinds else 'X' if float in kinds else 'TEXT')}"


def description(parameter: Any) -> str:
    """Return a parameter's help, with its environment variable and its default if that says anything."""
    shown = parameter.show_default
    if not isinstance(shown, str):  # no text of its own
        shown = "" if parameter.default is False else show(parameter.default)
    variable = f" [env: {parameter.envvar}]" if parameter.envvar else ""
    return f"{parameter.help}{variable}" + (f" [default: {shown}]" if shown else "")


Json = Annotated[bool, output_option("--json", help="Print JSON, one object per line.")]
Quiet = Annotated[bool, output_option("--quiet", "-q", help="Print only errors on stderr.")]
Device = Annotated[
    str,
    machine_option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", autocompletion=one_of("auto", "cpu", "cuda")),
]
Threads = Annotated[int | None, machine_option(help="CPU threads.", show_default="all available cores")]
Encoding = Annotated[
    str | None, text_option(metavar="NAME", help="Text encoding.", show_default=default(CorpusConfig, "encoding"))
]
Column = Annotated[
    str | None,
    text_option(
        metavar="NAME",
        help="Column with the text, in CSV, TSV, JSON Lines or FASTA; each record is a document. "
        "A number, from 1, if there is no header.",
    ),
]
Label = Annotated[
    str | None,
    text_option(metavar="NAME", help="Column with the label of each record, such as a country or a genre."),
]
LabelFrom = Annotated[
    str | None,
    text_option(
        metavar="KIND",
        help="Label each document with the name of its file or folder: file or folder.",
        autocompletion=one_of("file", "folder"),
    ),
]
Format = Annotated[
    str | None,
    text_option(
        "--format",
        metavar="FORMAT",
        help="Format of the records: csv, tsv, jsonl or fasta.",
        show_default="as the file's name says",
        autocompletion=one_of(*FORMATS),
    ),
]
Errors = Annotated[
    str | None,
    text_option(
        metavar="MODE",
        help="Invalid bytes and records: strict (stop), or replace (bytes by U+FFFD; records are skipped).",
        show_default=default(CorpusConfig, "errors"),
        autocompletion=one_of("strict", "replace"),
    ),
]
Inside = Annotated[
    list[str] | None,
    output_option(
        "--inside",
        metavar="[PART]",
        help=f"Also look inside the model: {', '.join(PARTS[:-1])} or {PARTS[-1]}; repeat it for several.",
        show_default="all parts",
        autocompletion=one_of(*PARTS, ALL_PARTS),
    ),
]
ModelNames = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Run name or model file; repeat it to compare models on the same text.",
        show_default="the newest model",
        autocompletion=completion.runs,
    ),
]
MaxBytes = Annotated[
    int | None, text_option(help="Stop if the text has more than N bytes.", show_default="half of the free disk space")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Run name or model file.",
        show_default="the newest model",
        autocompletion=completion.runs,
    ),
]
