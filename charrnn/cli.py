"""The command line: each command builds its settings, calls one function and shows what comes back.

Heavy imports stand inside the commands that need them, so that `--help` and `info` answer
at once. An option that isn't given is None here; its default lives in config.py.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from charrnn import __version__, console, wording
from charrnn.config import (
    ADAPT_RATE,
    SECONDS_BETWEEN_STATES,
    CorpusConfig,
    ModelConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    available_cores,
    overlay,
)
from charrnn.distributed import Ranks
from charrnn.errors import (
    CharrnnError,
    ElsewhereError,
    InputError,
    Interrupted,
    ModelFileError,
    OutputClosed,
    ResourceError,
    UsageError,
)
from charrnn.metrics import bits

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from charrnn.cache import Cache
    from charrnn.checkpoint import ModelFile
    from charrnn.corpus import Corpus
    from charrnn.plans import RunPlan
    from charrnn.runs import Run

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

network = functools.partial(typer.Option, rich_help_panel="Network")
instead = functools.partial(typer.Option, rich_help_panel="Printed instead")
budget = functools.partial(typer.Option, rich_help_panel="Budget")
ending = functools.partial(typer.Option, rich_help_panel="Where it ends")
choice = functools.partial(typer.Option, rich_help_panel="What is drawn")
learning = functools.partial(typer.Option, rich_help_panel="Learning")
reading = functools.partial(typer.Option, rich_help_panel="Reading")


def default(field: str) -> dict[str, Any]:
    """What help shows as the default of a sampling setting, from where it lives."""
    return {"show_default": str(getattr(SampleConfig, field))}


COMPARING = "comparing with n-grams and xz"
COMPILING = "compiling the kernels for this processor, which happens once"

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, one object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default the cores this process may use.")]
Encoding = Annotated[str | None, reading(help="Encoding of the text.", show_default=CorpusConfig.encoding)]
Errors = Annotated[
    str | None,
    reading(help="Bytes that are wrong in it: strict ends, replace goes on.", show_default=CorpusConfig.errors),
]
ModelName = Annotated[
    str | None,
    typer.Option("-m", "--model", help="A run's name or a model file; by default the newest in ./checkpoints."),
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Learn from any text, character by character, and write more of it."""
    if version:
        console.result(f"charrnn {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.result(context.get_help())
        raise typer.Exit(UsageError.exit_code)
    if context.invoked_subcommand != "train" and Ranks.of_environment().size > 1:
        raise UsageError(f"only training is shared by processes; start charrnn {context.invoked_subcommand} alone")


@app.command()
def train(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Text files, packed or not, folders, or - for stdin.")
    ],
    cell: Annotated[str | None, network(help="rnn, gru or lstm.")] = None,
    num_layers: Annotated[int | None, network(help="Recurrent layers.")] = None,
    hidden_size: Annotated[int | None, network(help="Units a layer.")] = None,
    embedding_dim: Annotated[int | None, network(help="Numbers that stand for a character.")] = None,
    minutes: Annotated[float | None, budget(help="Time, from the first step to the saved model.")] = None,
    steps: Annotated[int | None, budget(help="Optimiser updates instead.")] = None,
    dropout: Annotated[float | None, learning(help="Share of each layer's outputs dropped.")] = None,
    weight_drop: Annotated[float | None, learning(help="Share of the recurrent weights dropped.")] = None,
    seq_len: Annotated[int | None, learning(help="Characters a gradient reaches back.")] = None,
    batch_size: Annotated[int | None, learning(help="Places in the text read side by side.")] = None,
    learning_rate: Annotated[float | None, learning(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, learning(help="Pull of the weights towards zero.")] = None,
    grad_clip: Annotated[float | None, learning(help="Largest norm of a gradient.")] = None,
    patience: Annotated[
        int | None,
        learning(
            help="Evaluations without a better one that end the run; 0 never does.",
            show_default=str(TrainConfig.patience),
        ),
    ] = None,
    seed: Annotated[int | None, learning(help="Seed of weights, masks and lanes.")] = None,
    mix: Annotated[
        bool | None,
        learning("--mix/--no-mix", help="Mix n-grams into what is predicted, where that pays.", show_default="mix"),
    ] = None,
    glob: Annotated[
        str | None, reading(help="Which files of a folder, as '*.txt'.", show_default=SourceConfig.glob)
    ] = None,
    encoding: Encoding = None,
    errors: Errors = None,
    bytes_: Annotated[bool | None, reading("--bytes", help="Learn bytes, of any file, instead of characters.")] = None,
    min_count: Annotated[
        int | None, reading(help="Rarer characters are one symbol.", show_default=str(CorpusConfig.min_count))
    ] = None,
    documents: Annotated[
        str | None,
        reading(help="The text is many, none of which knows the others: lines, blank-lines, or what is between them."),
    ] = None,
    max_bytes: Annotated[
        int | None, reading(help="Most to read.", show_default="half of what is free on the disk")
    ] = None,
    valid: Annotated[str | None, reading(metavar="FILE", help="A text to hold out instead of a share.")] = None,
    valid_fraction: Annotated[
        float | None,
        reading(help="Share of the text, its end, that is held out.", show_default=str(CorpusConfig.valid_fraction)),
    ] = None,
    test_fraction: Annotated[
        float | None,
        reading(
            help="Share, behind that, that is scored once at the end.", show_default=str(CorpusConfig.test_fraction)
        ),
    ] = None,
    init_from: Annotated[
        str | None, learning(metavar="MODEL", help="Begin with a model's weights: a run's name or a file.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the folder in ./checkpoints; by default the text's.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, forgetting what the run has learned.")] = False,
    device: Device = "auto",
    threads: Threads = None,
    precision: Annotated[
        str, typer.Option(help="Of the products: bfloat16, float32, or auto, what this machine is fastest in.")
    ] = "auto",
    save_every: Annotated[
        float, typer.Option(help="Seconds between two saved states; each better model is saved too.")
    ] = SECONDS_BETWEEN_STATES,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page about the model beside it when the run is over.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from TEXT and keep the best model in ./checkpoints; its path is printed.

    Without options the sizes follow from the text, and the budget is thirty passes over a
    short text, five minutes for a long one. A run that gets no better ends sooner.
    The same command again goes on where an unfinished run stopped.
    """
    given = settings(locals())
    from charrnn import distributed

    with distributed.joined(Ranks.of_environment(), device=device) as ranks, contextlib.ExitStack() as held:
        quiet = quiet or not ranks.is_first
        fresh = fresh and ranks.restarts == 0  # what was learnt before a restart is not to be forgotten
        request = functools.partial(
            prepare,
            *(texts, given, run, ranks),
            minutes=minutes,
            save_every=save_every,
            device=device,
            threads=threads,
            precision=precision,
            fresh=fresh,
            dry_run=dry_run,
            quiet=quiet,
        )
        make_plan = ranks.agree("text", request)
        # what is wrong with the request is told before anything is made or forgotten
        plan = ranks.agree("request", make_plan, lambda plan: plan.common)
        if dry_run:
            if ranks.is_first:
                show_plan(plan, json=json)
            return
        ranks.agree("folder", lambda: ranks.is_first and held.enter_context(plan.run.locked()))
        # again, because another run may have trained here until now
        plan = ranks.agree("plan", make_plan, lambda plan: plan.common)
        if fresh and ranks.is_first:
            plan.run.clear()
        is_new = run_plan(plan, console.TrainView(json_lines=json and ranks.is_first, quiet=quiet))
    if ranks.is_first:
        tell_about(plan, compared=is_new and not quiet, report=report, quiet=quiet)
        if not json:
            console.result_path(plan.run.model_path)
    if not quiet:
        console.note(f"next: charrnn sample -m {shlex.quote(plan.run.name)} --temp 0.8")


def prepare(
    texts: list[str],
    given: dict[str, Any],
    run: str | None,
    ranks: Ranks,
    *,
    minutes: float | None,
    save_every: float,
    device: str,
    threads: int | None,
    precision: str,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
) -> "Callable[[], RunPlan]":
    """Read the texts and get PyTorch ready; return what makes the run's plan from what its folder then holds."""
    check_budget(minutes, given.get("steps"), save_every)
    if (valid := given.get("valid")) is not None:
        given = {**given, "valid": valid if valid == "-" else os.path.abspath(valid)}
        if "valid_fraction" in given:
            raise UsageError("--valid FILE and --valid-fraction are two ways to hold a text out; give one of them")
    if ranks.size > 1 and "-" in (*texts, valid):
        raise UsageError("several processes can't read one stdin; give the text as a file")
    from charrnn import cache, corpus, distributed, plans, runs, sources

    sources.check(texts[0])  # before its name becomes a run's
    place, base = runs.Run(runs.run_name(texts[0]) if run is None else run), None
    if ranks.is_first and not dry_run:
        place.check_writable()  # before a long text is read
    if "init_from" in given:
        given, base = find_base(place, given, fresh=fresh)
    corpus_config = plans.settle_corpus(place, given, fresh=fresh)
    source_config = overlay(SourceConfig(), given)
    with (
        ranks.first_here("reading"),
        console.patience("reading the text", quiet=quiet),
        cache.Cache.of_user().writable() as folder,
    ):
        data = corpus.load_corpus(texts, corpus_config, source_config, folder)
    cores = count_threads(threads, ranks.local_size)
    target = ready_torch(distributed.device_for(ranks, device), cores)
    from charrnn.cells import select_precision

    return functools.partial(
        plans.make_plan,
        *(place, data, corpus_config, given),
        minutes=minutes,
        device=str(target),
        threads=cores,
        precision=select_precision(precision, target),
        fresh=fresh,
        base=base,
        save_every=save_every,
        ranks=ranks,
    )


def show_plan(plan: "RunPlan", *, json: bool) -> None:
    """Print what a run would do."""
    fact = plan.fact()
    console.result_json(fact.record()) if json else console.result(wording.plan_lines(fact, with_reasons=True))


def tell_about(plan: "RunPlan", *, compared: bool, report: bool, quiet: bool) -> None:
    """Say what a finished run's score is worth, and write the page about its model."""
    from charrnn import review

    with console.patience(COMPARING, quiet=quiet):
        if compared:
            console.prose(review.compare(plan))
        if report:
            path = review.write_report(plan)
    if report and not quiet:
        console.note(f"the page about it: {path}")


def find_base(place: "Run", given: dict[str, Any], *, fresh: bool) -> tuple[dict[str, Any], "ModelFile | None"]:
    """What the user gave with what the model of --init-from says, and that model, which only a new run needs."""
    from charrnn import checkpoint, plans, runs

    which, rest = given["init_from"], {name: value for name, value in given.items() if name != "init_from"}
    going_on = not fresh and place.last_step() is not None
    try:
        path = os.path.abspath(runs.find_model(which))
    except ModelFileError:
        if not going_on:
            raise
        return rest, None
    given = {**rest, "init_from": path}
    if going_on:
        return given, None
    base = checkpoint.load_model(path)
    return plans.begin_with(base, given), base


def run_plan(plan: "RunPlan", view: console.TrainView) -> bool:
    """Carry a plan out, logging and showing what happens. Returns whether there was anything left to do."""
    from charrnn import keeping, metrics, precompilation, runs, training

    log = runs.Log(plan.run)
    if plan.done and not plan.ranks.is_first:
        return False
    if plan.resume and plan.done:
        step = plan.resume.meta["step"]
        finished = keeping.finished_before(plan, step)
        view.show(metrics.Resumed(step, plan.notes[0]))
        view.show(finished)
        if plan.run.num_logged() < plan.resume.meta["num_events"]:  # the run was killed before it could tell
            log.append(finished.record())
        return False
    with plan.ranks.first_here("kernels"), console.patience(COMPILING, quiet=view.quiet):
        precompilation.for_training(plan.precision, plan.device)
    try:
        with runs.catching_signals(view.stopping) as stop:
            for event in training.train(plan, stop=stop):
                if not plan.ranks.is_first:
                    continue
                if problem := log.append(event.record()):
                    view.show(metrics.Warned(event.step, problem))
                view.show(event)
    finally:
        view.close()
    if plan.ranks.is_first:
        log.finish()
    return True


@app.command()
def sample(
    model: ModelName = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to go on from.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option("-f", "--prompt-file", help="The same from a file, or - for stdin; -p comes after it.")
    ] = None,
    echo: Annotated[bool, typer.Option(help="Whether the prompt is written too.")] = True,
    length: Annotated[
        int | None, ending("-n", "--length", help="Characters to write; -1 never ends.", **default("length"))
    ] = None,
    lines: Annotated[int | None, ending(help="Lines to write; 0 doesn't count them.", **default("lines"))] = None,
    stop: Annotated[
        list[str] | None, ending(help="Text that ends a sample and isn't written; may be given again.")
    ] = None,
    temperature: Annotated[
        float | None,
        choice(
            "--temp",
            "--temperature",
            help="Below 1 safer, above 1 wilder; 0 always takes the likeliest.",
            **default("temperature"),
        ),
    ] = None,
    top_k: Annotated[int | None, choice(help="Only the k likeliest; 0 is off.", **default("top_k"))] = None,
    top_p: Annotated[
        float | None,
        choice(help="Only the likeliest that together have this probability; 1 is off.", **default("top_p")),
    ] = None,
    min_p: Annotated[
        float | None,
        choice(help="Only what has this share of the likeliest's probability; 0 is off.", **default("min_p")),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, choice(help="Never write the same N characters twice; 0 is off.", **default("no_repeat_ngram"))
    ] = None,
    seed: Annotated[
        int | None, choice(help="The same seed writes the same text; chosen and told if not given.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option("-N", "--num-samples", help="Texts to write.", **default("num_samples"))
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="Separate samples by a NUL character, not a newline.")
    ] = False,
    unknown: Annotated[
        str | None,
        typer.Option(help="Prompt characters that the model doesn't know: error or skip.", **default("unknown")),
    ] = None,
    threads: Threads = None,
    precision: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16, or auto, what this machine is fastest in.")
    ] = "float32",
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write new text with a trained model.

    Filters come in this order: --no-repeat-ngram, --top-k, --top-p, --min-p, then --temp.
    """
    given = settings(locals())
    from charrnn import precompilation, runs, sampling

    if prompt_file is not None:
        from charrnn import cache, corpus

        with cache.Cache.of_user().writable() as folder:
            given["prompt"] = corpus.read_text(prompt_file, folder) + (prompt or "")
    if stop is not None:
        given["stop"] = tuple(stop)
    chosen = overlay(SampleConfig(seed=sampling.random_seed()), given)
    path = runs.find_model(model)
    cores = count_threads(threads)
    if device != "cpu":
        device = str(ready_torch(device, cores))
    sampler = sampling.Sampler.load(path, threads=cores, precision=precision, device=device)
    if sampler.writes_documents and length is None:  # whole ones
        chosen = overlay(chosen, {"length": -1})
    if json and chosen.length < 0 and not (chosen.lines or chosen.stop or sampler.writes_documents):
        raise UsageError("--json prints a sample when it is whole, so it needs an end: --length, --lines or --stop")
    with console.patience(COMPILING, quiet=quiet):
        precompilation.for_sampling(sampler.precision, device)
    streams = sampler.streams(**dataclasses.asdict(chosen))
    if seed is None and not quiet and not json:
        console.note(f"seed {chosen.seed}")
    with console.patience("reading the prompt", quiet=quiet):
        streams.read_prompt()
    facts = {name: value for name, value in dataclasses.asdict(chosen).items() if name not in ("prompt", "seed")}
    for stream in streams:
        if not json:
            if stream.number > 0:
                console.write(b"\0" if null else b"\n")
            console.stream(itertools.chain([chosen.prompt] if echo else [], stream))
            continue
        text = "".join(stream)
        console.result_json(
            {
                "text": text,
                "prompt": chosen.prompt,
                "seed": chosen.seed,
                "stream": stream.number,
                "settings": facts | {"precision": sampler.precision},
                "num_chars": len(text),
                "seconds": stream.seconds,
                "bits_per_char": bits(stream.nats / stream.num_drawn) if stream.num_drawn else None,
                "model": str(path),
            }
        )


@app.command("eval")
def evaluate(
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT|-]", help="The text to score; by default the part held out in training."),
    ] = None,
    model: ModelName = None,
    train_text: Annotated[
        list[str] | None,
        typer.Option(help="Where the text it was trained on is now; again for each, in the same order."),
    ] = None,
    yardsticks: Annotated[
        bool, typer.Option(help="Whether to compare with n-grams and xz, and to tell how much the model copies.")
    ] = True,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Score it also while it goes on learning from what it has read.")
    ] = False,
    adapt_rate: Annotated[
        float | None, typer.Option(help="How fast it does, with --adapt.", show_default=str(ADAPT_RATE))
    ] = None,
    per_line: Annotated[bool, instead("--per-line", help="What each line costs, as JSON.")] = False,
    per_char: Annotated[
        bool, instead("--per-char", help="What each character costs, and what was likelier, as JSON.")
    ] = False,
    worst: Annotated[int | None, instead(metavar="N", help="The lines that cost most a character.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page about the model there, too.")] = None,
    encoding: Encoding = None,
    errors: Errors = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Say exactly how well a model predicts a text, and whether that is good."""
    given = settings(locals())
    itemised = check_items(per_line=per_line, per_char=per_char, worst=worst)
    if adapt_rate is not None and not (adapt and 0 <= adapt_rate <= 1):
        raise UsageError("--adapt-rate, between 0 and 1, says how fast --adapt goes; it takes both")
    if html is not None:
        check_target(html)
    from charrnn import cache, checkpoint, passages, precompilation, runs

    path = runs.find_model(model)
    file = checkpoint.load_model(path)
    whole = html is not None or not itemised
    needed = bool(text is None or train_text or adapt)
    with console.patience("reading the text"), cache.Cache.of_user().writable() as folder:
        corpus = find_training_text(file, train_text, folder, needed) if needed or (yardsticks and whole) else None
        if text is not None:
            passage = passages.whole_text(file, text, given, SourceConfig(), folder)
        elif corpus:
            passage = passages.held_out(file, corpus)
    cores = count_threads(threads)
    target = ready_torch(device, cores)
    from charrnn import assessment, review
    from charrnn.model import CharRNN

    with console.patience(COMPILING):
        precompilation.for_training("float32", str(target)) if adapt else precompilation.for_scoring(str(target))
    network = CharRNN.from_arrays(file.config, file.tensors).to(target)
    if itemised:
        review.print_items(network, file, passage, per_line=per_line, per_char=per_char, worst=worst, json=json)
    if not whole:
        return
    with console.patience("scoring the text"):
        found = assessment.assess(
            *(file, network, passage, corpus.train_ids if corpus else None),
            compared=yardsticks,
            adapt_rate=(ADAPT_RATE if adapt_rate is None else adapt_rate) if adapt else None,
            threads=cores,
        )
    if not itemised:
        review.print_assessment(path, network, file, passage, found, json=json)
    if html is not None:
        review.write_page(Path(html), path, file, network, passage, found, cores)
        console.note(f"the page about it: {html}")


def check_target(path: str) -> None:
    """Refuse a page's place before the work for it is done."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not path:
        raise UsageError(f"--html {path!r} is no file's name; name one, as in --html report.html")
    if not os.path.isdir(folder) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise CharrnnError(f"{path}: can't be written; --html needs a folder that is there and can be written to")


def find_training_text(
    file: "ModelFile", train_text: list[str] | None, folder: "Cache", needed: bool
) -> "Corpus | None":
    """The text that a model was trained on; where it isn't found and nothing needs it, that is said."""
    from charrnn import passages

    try:
        return passages.trained_on(file, train_text, SourceConfig(), folder)
    except InputError as error:
        if needed:
            raise
        console.note(f"there is nothing to compare with: {error}")
    return None


def check_items(*, per_line: bool, per_char: bool, worst: int | None) -> bool:
    """Whether lines or characters are printed instead of a score; refuse more than one kind."""
    if per_line + per_char + (worst is not None) > 1:
        raise UsageError("--per-line, --per-char and --worst each say what is printed; give one of them")
    if worst is not None and worst < 1:
        raise UsageError(f"--worst must be at least 1, not {worst}")
    return per_line or per_char or worst is not None


@app.command()
def info(
    which: Annotated[
        str | None, typer.Argument(metavar="[RUN|FILE]", help="One model; by default all in ./checkpoints.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Where texts are kept as numbers, and how much.")] = False,
    json: Json = False,
) -> None:
    """List the runs in ./checkpoints, or describe one model."""
    from charrnn import checkpoint, runs

    if cache:
        show_cache(json=json)
        return
    paths = runs.list_models() if which is None else [runs.find_model(which)]
    stopped = runs.list_without_model() if which is None else []
    for name in stopped:
        console.note(f"run {name!r} was stopped before it had a model; the same charrnn train command goes on")
    if not paths and not stopped:
        raise ModelFileError(f"no model in ./{runs.ROOT}; make one with: charrnn train TEXT")
    cards = []
    for path in paths:
        try:
            cards.append(wording.card(str(path), checkpoint.load_model(path)))
        except ModelFileError as error:
            if which is not None:
                raise
            console.error(str(error))
    if json:
        for card in cards:
            console.result_json(card)
    elif which is not None:
        console.table(wording.card_rows(cards[0]))
    else:
        console.table([wording.card_line(card) for card in cards], header=wording.CARD_HEADER)


def show_cache(*, json: bool) -> None:
    """What the cache of texts holds, and how to be rid of it."""
    from charrnn.cache import MOST_BYTES, Cache

    cache = Cache.of_user()
    facts = {"folder": str(cache.folder), "num_texts": len(cache.entries()), "num_bytes": cache.num_bytes()}
    facts |= {"most_bytes": MOST_BYTES, "empty": f"rm -r {shlex.quote(str(cache.folder))}"}
    console.result_json(facts) if json else console.table(wording.cache_rows(facts))


def settings(values: dict[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, the fields of the configurations that the user named."""
    kinds = (ModelConfig, TrainConfig, SourceConfig, CorpusConfig, SampleConfig)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    given = {name.rstrip("_"): value for name, value in values.items() if value is not None}
    return {name: value for name, value in given.items() if name in names}


def check_budget(minutes: float | None, steps: int | None, save_every: float) -> None:
    """Refuse budgets that contradict each other or mean nothing."""
    if minutes is not None and steps is not None:
        raise UsageError("--minutes and --steps are two kinds of budget; give one of them")
    if minutes is not None and not 0.01 <= minutes <= 1e6:
        raise UsageError(f"--minutes must lie between 0.01 and 1e+06, not {minutes}")
    if not 0 <= save_every <= 1e6:
        raise UsageError(f"--save-every must lie between 0 and 1e+06, not {save_every}")


def count_threads(threads: int | None, num_processes: int = 1) -> int:
    """The number of CPU threads to use, in each of the processes that share the cores."""
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"--threads must lie between 1 and 1024, not {threads}")
    return threads or max(1, available_cores() // num_processes)


def ready_torch(device: str, threads: int) -> "torch.device":
    """Import PyTorch, set its threads and find the device.

    OpenMP's threads spin while they wait, which starves whoever shares the cores. A short
    spin costs nothing on a quiet machine and trains half as fast again beside another run.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when PyTorch is imported
    import torch

    from charrnn.cells import select_device
    from charrnn.lanes import use_threads

    use_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # or a GPU's recurrent layers would round what is called float32
    return select_device(device)


def main() -> NoReturn:
    """Run the command line; every failure a user can cause is one line on stderr and its exit code."""
    if sys.stderr is None:  # closed by the caller; print would take stdout instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        code = app(standalone_mode=False)
    except (ElsewhereError, OutputClosed) as error:
        code = error.exit_code
    except Interrupted as error:
        if Ranks.of_environment().is_first:
            complain(str(error))
        end_by(error.signal_number)
        code = error.exit_code
    except CharrnnError as error:
        complain(str(error))
        code = error.exit_code
    except typer.TyperException as error:  # the parser's own complaints
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "charrnn"
        complain(f"{error.format_message().rstrip('.')}; try {command} --help")
        code = UsageError.exit_code
    except KeyboardInterrupt:
        end_by(signal.SIGINT)
        code = 130
    except OSError as error:  # what no module could say better: a full disk, a folder that went away
        console.drop_stdout()
        complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        code = CharrnnError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        complain("out of memory; train with a smaller --batch-size, --seq-len or --hidden-size, sample with fewer -N")
        code = ResourceError.exit_code
    sys.exit(code)


def complain(text: str) -> None:
    """The line that a failed command ends with; of several processes, each says which it is."""
    label = ""
    with contextlib.suppress(UsageError):
        label = Ranks.of_environment().label
    console.error(label + text)


def end_by(number: int) -> None:
    """End this process by a signal, so that its parent sees what a shell's loop stops for."""
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch, numpy or Python could not allocate; torch's CPU allocator has no class for it."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
