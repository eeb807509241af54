"""`charrnn train`: learn from texts and save the best model."""

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from charrnn.cli.options import (
    Column,
    Device,
    Encoding,
    Errors,
    Format,
    Json,
    Label,
    LabelFrom,
    MaxBytes,
    Quiet,
    Threads,
    default,
    given,
    learning_option,
    machine_option,
    network_option,
    output_option,
    text_option,
)
from charrnn.config import (
    BLANK_LINES,
    CELLS,
    LINES,
    PRECISIONS,
    SECONDS_BETWEEN_STATES,
    CorpusConfig,
    SourceConfig,
    TrainConfig,
    check_number,
)
from charrnn.distributed import Ranks, process_group
from charrnn.evaluation.scores import Assessment, Evaluation
from charrnn.files import CHECKPOINTS
from charrnn.hardware import count_threads, select_precision, set_up_torch
from charrnn.terminal import completion, console, messages, tables
from charrnn.terminal.completion import one_of
from charrnn.terminal.progress import TrainView

if TYPE_CHECKING:
    from charrnn.runs.folder import Run
    from charrnn.training.plan import Environment, RunPlan


def train(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Text files (also compressed), folders, or - for stdin.")
    ],
    minutes: Annotated[
        float | None, typer.Option(help="Time limit, from the first step until the model is saved.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of optimiser updates, instead of --minutes.")] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the run and its folder.",
            show_default="the text's name",
            autocompletion=completion.runs,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over and discard the earlier run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and exit.")] = False,
    cell: Annotated[
        str | None,
        network_option(
            metavar="CELL",
            help=f"Recurrent cell: {', '.join(CELLS[:-1])} or {CELLS[-1]}.",
            autocompletion=one_of(*CELLS),
        ),
    ] = None,
    num_layers: Annotated[
        int | None, network_option("--num-layers", "--layers", help="Number of recurrent layers.")
    ] = None,
    hidden_size: Annotated[int | None, network_option("--hidden-size", "--hidden", help="Units per layer.")] = None,
    embedding_dim: Annotated[int | None, network_option(help="Embedding size.")] = None,
    dropout: Annotated[float | None, learning_option(help="Dropout on each layer's output.")] = None,
    weight_drop: Annotated[float | None, learning_option(help="Dropout on the recurrent weights.")] = None,
    seq_len: Annotated[int | None, learning_option(help="Characters per window of backpropagation.")] = None,
    batch_size: Annotated[int | None, learning_option("--batch-size", "--batch", help="Windows per step.")] = None,
    learning_rate: Annotated[
        float | None, learning_option("--learning-rate", "--lr", help="Peak learning rate.")
    ] = None,
    weight_decay: Annotated[
        float | None, learning_option(help="Weight decay.", show_default=default(TrainConfig, "weight_decay"))
    ] = None,
    grad_clip: Annotated[
        float | None,
        learning_option(help="Maximum gradient norm.", show_default=default(TrainConfig, "grad_clip")),
    ] = None,
    patience: Annotated[
        int | None,
        learning_option(
            help="Stop after this many evaluations without improvement; 0 = never.",
            show_default=default(TrainConfig, "patience"),
        ),
    ] = None,
    seed: Annotated[int | None, learning_option(help="Random seed.", show_default=default(TrainConfig, "seed"))] = None,
    mix: Annotated[
        bool | None,
        learning_option(
            "--mix/--no-mix",
            help="Mix n-grams into the predictions if that helps.",
            show_default=default(TrainConfig, "mix"),
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        learning_option(
            metavar="MODEL",
            help="Start from this model's weights: a run name or a file.",
            autocompletion=completion.runs,
        ),
    ] = None,
    documents: Annotated[
        str | None,
        text_option(
            metavar="SEPARATOR",
            help="Treat the text as separate documents, split at lines, blank-lines or any string; "
            r"\n, \t and \\ are escapes.",
            autocompletion=one_of(LINES, BLANK_LINES),
        ),
    ] = None,
    column: Column = None,
    label: Label = None,
    label_from: LabelFrom = None,
    format_: Format = None,
    keep_separator: Annotated[
        bool | None,
        text_option("--keep-separator", help="Begin each document with its separator, such as '>' or '[Event'."),
    ] = None,
    bytes_: Annotated[bool | None, text_option("--bytes", help="Learn bytes instead of characters.")] = None,
    encoding: Encoding = None,
    errors: Errors = None,
    min_count: Annotated[
        int | None,
        text_option(
            help="Treat characters that occur fewer than N times as one unknown symbol.",
            show_default=default(CorpusConfig, "min_count"),
        ),
    ] = None,
    glob: Annotated[
        str | None,
        text_option(
            metavar="PATTERN",
            help="Files to read from a folder, for example '*.txt'.",
            show_default=default(SourceConfig, "glob"),
        ),
    ] = None,
    max_bytes: MaxBytes = None,
    valid: Annotated[
        str | None, text_option(metavar="FILE", help="Hold out this text instead of the end of TEXT.")
    ] = None,
    valid_fraction: Annotated[
        float | None,
        text_option(
            help="Fraction of the text to hold out, from its end.", show_default=default(CorpusConfig, "valid_fraction")
        ),
    ] = None,
    test_fraction: Annotated[
        float | None,
        text_option(
            help="Extra fraction to hold out after that and score once, at the end of the run.",
            show_default=default(CorpusConfig, "test_fraction"),
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Annotated[
        str,
        machine_option(
            metavar="FORMAT",
            help="Number format for matrix products: float32, bfloat16 or auto (the fastest here).",
            autocompletion=one_of(*PRECISIONS, "auto"),
        ),
    ] = "auto",
    report: Annotated[bool, output_option("--report", help="Write a report page next to the model.")] = False,
    export: Annotated[
        bool, output_option("--export", help="Write a page next to the model that writes text in any browser.")
    ] = False,
    save_every: Annotated[
        float, output_option(metavar="SECONDS", help="Interval between saved states.")
    ] = SECONDS_BETWEEN_STATES,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from TEXT and save the best model.

    Prints the model's path. Network, settings and budget follow from the text: 30 to 50 passes over
    a short text, 5 minutes for a long one. Training stops early if the model no longer improves.
    The same command resumes an unfinished run; a larger --minutes or --steps extends a finished one.

    \b
    Examples:
      charrnn train poems.txt
      charrnn train novels/ --glob '*.txt' --minutes 10
      zcat names.gz | charrnn train - --documents lines --run names
    """
    check_number("--save-every", save_every, 0.0, 1e6)
    settings = given(
        minutes=minutes,
        steps=steps,
        cell=cell,
        num_layers=num_layers,
        hidden_size=hidden_size,
        embedding_dim=embedding_dim,
        dropout=dropout,
        weight_drop=weight_drop,
        seq_len=seq_len,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        patience=patience,
        seed=seed,
        mix=mix,
        init_from=init_from,
        documents=documents,
        column=column,
        label=label,
        label_from=label_from,
        format=format_,
        keep_separator=keep_separator,
        bytes=bytes_,
        encoding=encoding,
        errors=errors,
        min_count=min_count,
        glob=glob,
        max_bytes=max_bytes,
        valid=valid,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
    )
    run_folder = find_folder(texts[0], run)
    with process_group(Ranks.from_environment(), device=device) as ranks:
        view = TrainView(json_lines=json and ranks.is_first, quiet=quiet or not ranks.is_first)
        fresh = fresh and ranks.restarts == 0  # torchrun restarts the same command, which must resume then
        if not dry_run:  # before a long text is read
            check_writable(ranks, run_folder)
        machine = Machine(device, threads, precision)
        plan = plan_together(ranks, machine, run_folder, texts, settings, fresh=fresh, quiet=view.quiet)
        if dry_run:
            if ranks.is_first:
                show_plan(plan, json=json)
            return
        was_trained = run_plan(plan, view, save_every=save_every, fresh=fresh)
    if ranks.is_first:
        if was_trained and not quiet:
            print_comparison(plan)
        write_pages(plan, report=report, export=export, quiet=quiet)
        show_result(plan, json=json, quiet=quiet)


def find_folder(text: str, name: str | None) -> "Run":
    """Return the folder of the run of this name; without one the first text's name is used."""
    from charrnn.runs.folder import Run
    from charrnn.runs.models import run_name
    from charrnn.text import sources

    sources.check_exists(text)  # before its name becomes the run's
    return Run(run_name(text) if name is None else name)


class Machine(NamedTuple):
    """What a run computes on, as the options say."""

    device: str
    threads: int | None
    precision: str


def plan_together(
    ranks: Ranks,
    machine: Machine,
    run_folder: "Run",
    texts: list[str],
    settings: dict[str, Any],
    *,
    fresh: bool,
    quiet: bool,
) -> "RunPlan":
    """Plan a run in each of its processes, which must agree. settings: those that the user named, by field."""

    def plan_run() -> "RunPlan":
        environment = set_up(ranks, machine)
        from charrnn.training.run import make_plan

        with console.slow_notice("reading the text", quiet=quiet):
            return make_plan(run_folder, texts, settings, environment, fresh=fresh)

    return ranks.agree("plan", plan_run, lambda plan: plan.shared_facts)


def check_writable(ranks: Ranks, run_folder: "Run") -> None:
    """Check that the first rank can write to a run's folder; all ranks end if it can't."""

    def check() -> None:
        if ranks.is_first:
            run_folder.check_writable()

    ranks.agree("writable", check)


def set_up(ranks: Ranks, machine: Machine) -> "Environment":
    """Import and set up PyTorch; return what the run computes on."""
    cores = count_threads(machine.threads, ranks.local_size)
    target = set_up_torch("cpu" if ranks.size > 1 else machine.device, cores)

    from charrnn.training.plan import Environment

    return Environment(str(target), cores, select_precision(machine.precision, target), ranks)


def show_plan(plan: "RunPlan", *, json: bool) -> None:
    """Print what a run would do."""
    event = plan.event()
    if json:
        console.result_json(event.record())
    else:
        console.result(messages.plan_lines(event, with_reasons=True))


def run_plan(plan: "RunPlan", view: TrainView, *, save_every: float, fresh: bool) -> bool:
    """Train as planned and show the events. Returns False if the run had finished before."""
    from charrnn import precompile
    from charrnn.signals import catching_signals
    from charrnn.training.run import lock, train_and_log

    ranks = plan.environment.ranks
    with contextlib.ExitStack() as held:

        def lock_folder() -> None:
            if ranks.is_first:
                held.enter_context(lock(plan, fresh=fresh))

        ranks.agree("folder", lock_folder)
        if plan.environment.device == "cpu" and not plan.is_finished:
            with (
                ranks.local_rank_first("kernels"),
                console.slow_notice(messages.compiling("training"), quiet=view.quiet),
            ):
                precompile.for_training(plan.environment.precision)
        stop = held.enter_context(catching_signals(view.stopping))
        held.callback(view.close)
        for event in train_and_log(plan, stop=stop, save_every=save_every):
            view.show(event)
    return not plan.is_finished


def print_comparison(plan: "RunPlan") -> None:
    """Print how a finished run's score compares with baselines."""
    from charrnn.data.batches import LAST_PART
    from charrnn.evaluation.assessment import compute_baselines
    from charrnn.evaluation.texts import held_out_text
    from charrnn.model.file import load_model

    with console.slow_notice(messages.COMPARING):
        file, corpus = load_model(plan.run.model_path), plan.task.corpus
        text = held_out_text(file, corpus)
        nats, num_chars = file.scores["nats_per_char"], file.scores["num_chars"]
        baselines = compute_baselines(
            corpus.train_ids, text.ids, context=text.context, vocab=file.vocab, max_read=LAST_PART
        )
        score = Evaluation(nats * num_chars, num_chars, {})
        console.paragraph(tables.comparison_lines(Assessment(score, baselines, unit=file.vocab.unit)))


def write_pages(plan: "RunPlan", *, report: bool, export: bool, quiet: bool) -> None:
    """Write the pages that are wanted next to the model; the report, written last, links to the exported one."""
    from charrnn.cli.export import write_run_player
    from charrnn.cli.report import write_run_report

    with console.slow_notice("writing the pages", quiet=quiet):
        paths = [write_run_player(plan.run)] if export else []
        paths += [write_run_report(plan)] if report else []
    for path in paths:
        if not quiet:
            console.note(f"wrote {path}")


def show_result(plan: "RunPlan", *, json: bool, quiet: bool) -> None:
    """Print the model's path, and the command to try next."""
    if not json:
        console.result_path(plan.run.model_path)
    if not quiet:
        named = plan.run.name if plan.run.root == Path(CHECKPOINTS) else str(plan.run.folder)
        console.note(f"next: charrnn sample -m {shlex.quote(named)} --temp 0.8")
