"""`charrnn sample`: write new text with a trained model. Never imports PyTorch."""

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charrnn.cli.options import (
    Json,
    ModelName,
    Quiet,
    Threads,
    constraint_option,
    default,
    end_option,
    filter_option,
    given,
    list_option,
    machine_option,
    output_option,
)
from charrnn.config import PRECISIONS, RESAMPLE, ListConfig, SampleConfig, flag, overlay
from charrnn.errors import CharrnnError, InputError, UsageError
from charrnn.hardware import count_threads
from charrnn.terminal import console, messages
from charrnn.terminal.completion import one_of
from charrnn.text.characters import unescaped

if TYPE_CHECKING:
    from pathlib import Path

    from charrnn.data.vocab import Vocab
    from charrnn.model.file import ModelFile
    from charrnn.sampling.lists import Known
    from charrnn.sampling.sampler import Sampler
    from charrnn.terminal.samples import Output

NUM_LIKELIEST = 5  # characters that --per-char lists


def sample(
    model: ModelName = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue.")] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "-f",
            "--prompt-file",
            metavar="FILE",
            help="Read the prompt from a file, or - for stdin; -p is appended.",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Continue each line of a file, or - for stdin, in turn. A line is a prompt or a JSON object with "
            "`prompt` and settings.",
        ),
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Prompt characters the model doesn't know: error (stop) or skip.",
            show_default=default(SampleConfig, "unknown"),
            autocompletion=one_of("error", "skip"),
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--length",
            help="Characters to write; -1 = endless. A model of bytes counts bytes, up to 3 more to end a character.",
            show_default=f"{default(SampleConfig, 'length')}, or to the end of a document",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL", help="Label of the texts, for a model with labels.", show_default="drawn for each text"
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temp",
            "--temperature",
            help="Below 1 is safer, above 1 wilder; 0 always takes the likeliest character.",
            show_default=default(SampleConfig, "temperature"),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Random seed; the same seed gives the same text. If omitted, one is chosen and printed."),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "-N", "--num-samples", help="Number of texts to write.", show_default=default(SampleConfig, "num_samples")
        ),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        filter_option(
            help="Never write the same N characters twice; 0 = off.",
            show_default=default(SampleConfig, "no_repeat_ngram"),
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        filter_option(
            help="Choose among the N likeliest characters; 0 = off.", show_default=default(SampleConfig, "top_k")
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        filter_option(
            help="Choose among the likeliest characters that together have this probability; 1 = off.",
            show_default=default(SampleConfig, "top_p"),
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        filter_option(
            help="Exclude characters below this fraction of the highest probability; 0 = off.",
            show_default=default(SampleConfig, "min_p"),
        ),
    ] = None,
    match: Annotated[
        str | None,
        constraint_option(metavar="REGEX", help="Write only what matches: the whole text, or each line with --lines."),
    ] = None,
    allow: Annotated[
        str | None,
        constraint_option(metavar="CHARS", help=r"Write only these characters; \n, \t, \r and \\ are escapes."),
    ] = None,
    forbid: Annotated[str | None, constraint_option(metavar="CHARS", help="Never write these characters.")] = None,
    min_length: Annotated[
        int | None,
        constraint_option(
            help="Don't end a document, a line of --lines or a match before N characters.",
            show_default=default(SampleConfig, "min_length"),
        ),
    ] = None,
    no_copy: Annotated[
        int | None,
        constraint_option(
            help="Never write N characters in a row that are in the training text; 0 = off.",
            show_default=default(SampleConfig, "no_copy"),
        ),
    ] = None,
    resample: Annotated[
        int | None,
        constraint_option(
            help="Draw N candidates for each sample and choose one as the model would; 1 = write text as it is drawn.",
            show_default=f"{RESAMPLE}, or 1 without an end or at --temp 0",
        ),
    ] = None,
    lines: Annotated[
        int | None,
        end_option(help="Stop after this many lines; 0 = off.", show_default=default(SampleConfig, "lines")),
    ] = None,
    stop: Annotated[
        list[str] | None,
        end_option(
            metavar="TEXT",
            help=r"Stop before this text; \n, \t, \r and \\ are escapes. Can be given more than once.",
        ),
    ] = None,
    keep_stop: Annotated[
        bool | None, end_option("--keep-stop", help="Stop after the text of --stop instead of before it.")
    ] = None,
    unique: Annotated[
        bool | None, list_option("--unique", help="Draw until -N samples are found that all differ.")
    ] = None,
    new: Annotated[
        bool | None,
        list_option("--new", help="Draw until -N samples are found that are not in the training text (see --new-run)."),
    ] = None,
    new_run: Annotated[
        int | None,
        list_option(
            metavar="N",
            help="In continuous text, --new excludes samples with a run of N characters of the training text.",
            show_default=default(ListConfig, "new_run"),
        ),
    ] = None,
    max_draws: Annotated[
        int | None,
        list_option(
            metavar="N", help="Draw at most N samples for --unique and --new.", show_default="100 times the samples"
        ),
    ] = None,
    best: Annotated[
        int | None, list_option(metavar="K", help="Write only the K most probable of the -N samples, the best first.")
    ] = None,
    best_by: Annotated[
        str | None,
        list_option(
            metavar="COST",
            help="What makes a sample probable: few bits per character (char) or in all (total).",
            show_default=default(ListConfig, "best_by"),
            autocompletion=one_of("char", "total"),
        ),
    ] = None,
    train_text: Annotated[
        list[str] | None,
        list_option(
            help="Training text for --new and --no-copy, if it has moved. Can be given more than once.", metavar="FILE"
        ),
    ] = None,
    echo: Annotated[bool, output_option(help="Write the prompt before the text.")] = True,
    null: Annotated[
        bool, output_option("-0", "--null", help="End each sample with a NUL character instead of a newline.")
    ] = False,
    json: Json = False,
    per_char: Annotated[
        bool, output_option("--per-char", help="With --json, list each character's probability and the likeliest five.")
    ] = False,
    quiet: Quiet = False,
    threads: Threads = None,
    precision: Annotated[
        str,
        machine_option(
            metavar="FORMAT",
            help="Number format of the weights: float32, bfloat16 or auto (the fastest here).",
            autocompletion=one_of(*PRECISIONS, "auto"),
        ),
    ] = "float32",
) -> None:
    """Write new text with a trained model.

    Each sample ends with a newline; a blank line separates samples that may have several lines.
    Constraints apply first. Then filters apply in the order listed here, before --temp.

    \b
    Examples:
      charrnn sample
      charrnn sample -m poems -p 'The kettle' --temp 0.6 -n 300 --seed 7
      charrnn sample -m names -N 20 --unique --new
      charrnn sample -m names -N 20 --match '[A-Z][a-z]{2,5}(-[A-Z][a-z]+)?'
    """
    from charrnn.model.file import load_model
    from charrnn.runs.models import find_model
    from charrnn.sampling.sampler import Sampler
    from charrnn.terminal.samples import Output

    settings = given(
        prompt=prompt,
        label=label,
        length=length,
        lines=lines,
        stop=None if stop is None else tuple(map(unescaped, stop)),
        keep_stop=keep_stop,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        no_repeat_ngram=no_repeat_ngram,
        match=match,
        allow=None if allow is None else unescaped(allow),
        forbid=None if forbid is None else unescaped(forbid),
        min_length=min_length,
        no_copy=no_copy,
        resample=resample,
        num_samples=num_samples,
        seed=seed,
        unknown=unknown,
        unique=unique,
        new=new,
        new_run=new_run,
        max_draws=max_draws,
        best=best,
        best_by=best_by,
    )
    overlay(SampleConfig(), settings)  # checks the values before the model is loaded
    overlay(ListConfig(), settings)
    if prompts is not None:
        check_alone(settings, prompt_file)
    if per_char and not json:
        raise UsageError("--per-char needs --json")
    if json and (null or not echo):
        raise UsageError(f"{'--null' if null else '--no-echo'} has no effect on --json; leave one out")
    if train_text and not (new or no_copy):
        raise UsageError("--train-text has no effect without --new or --no-copy")
    path = find_model(model)
    file = load_model(path)
    sampler = Sampler(file, threads=count_threads(threads), precision=precision)
    sampler.num_top = NUM_LIKELIEST if per_char else 0
    output = Output(file.vocab, str(path), sampler.precision, json=json, echo=echo, null=null, quiet=quiet)
    if prompt_file is not None:
        settings["prompt"] = read_prompt(prompt_file, sampler.vocab, quiet=quiet) + (prompt or "")
    elif prompt is None and prompts is None and not quiet and has_unread_text():
        console.note("stdin is not read; to continue its text, add -f -")
    loaded = LoadedModel(path, file, sampler, train_text)
    if prompts is None:
        write_samples(loaded, settings, output)
    else:
        write_answers(loaded, settings, prompts, output)


@dataclass(frozen=True)
class LoadedModel:
    """A model that writes. path: of its file; train_text: the files of its training text, if given."""

    path: "Path"
    file: "ModelFile"
    sampler: "Sampler"
    train_text: list[str] | None


def write_samples(model: LoadedModel, settings: Mapping[str, Any], output: "Output") -> None:
    """Print num_samples texts after one prompt, or a list of them."""
    from charrnn.sampling.lists import Selection, configure_lists

    sampler = model.sampler
    config = sampler.configure(settings)
    if output.json and not sampler.ends(config):
        raise UsageError("--json prints a sample once it is complete, so give it an end: --length, --lines or --stop")
    lists = configure_lists(settings, config, sampler)
    known = prepare(model, config, lists, quiet=output.quiet)
    selection = Selection(sampler, config, lists, known) if lists.selects or lists.best else None
    streams = sampler.streams(config) if selection is None else selection.streams
    output.note_seed(settings, config)
    with console.slow_notice("reading the prompt", quiet=output.quiet):
        streams.read_prompts()
    several_lines = sampler.writes_several_lines(config) or (output.echo and "\n" in config.prompt)
    if selection is None:
        output.write_all(((stream, stream) for stream in streams), separated=several_lines)
        return
    output.write_all((([text], stream) for text, stream in selection), separated=several_lines)
    if selection.shortage:
        if selection.complete == 0 and config.length >= 0:
            raise CharrnnError(f"{selection.shortage}; none ended within --length {config.length}: raise that")
        fewer = ", or ask for fewer with -N" if selection.asked > 1 else ""
        raise CharrnnError(f"{selection.shortage}; raise --max-draws or --temp{fewer}")
    if selection.limit > selection.asked and not output.quiet:
        console.note(f"{selection.asked:,} asked for, {selection.summary()}")


def prepare(model: LoadedModel, config: SampleConfig, lists: ListConfig, *, quiet: bool) -> "Known | None":
    """Read the training text if it is needed, and load the kernels; return what new samples are compared with."""
    from charrnn import precompile
    from charrnn.data.cache import Cache
    from charrnn.runs.models import find_training_text
    from charrnn.sampling.lists import make_known, needs_training_text

    file, sampler, train_text, corpus = model.file, model.sampler, model.train_text, None
    if train_text or config.no_copy or needs_training_text(lists, file):
        with console.slow_notice("reading the training text", quiet=quiet), Cache.for_user().writable() as cache:
            corpus = find_training_text(model.path, file, train_text, cache)
    sampler.training_text = corpus.ids if corpus and config.no_copy else None
    with console.slow_notice(messages.compiling("sampling"), quiet=quiet):
        precompile.for_sampling(sampler.precision)
    return make_known(lists, file, corpus.ids if corpus else None)


def check_alone(settings: Mapping[str, Any], prompt_file: str | None) -> None:
    """Raise UsageError for options that can't be combined with --prompts."""
    for name in ("prompt", "num_samples", *(field.name for field in fields(ListConfig))):
        if name in settings:
            raise UsageError(
                f"--prompts and {flag(name)} can't be combined: each line has one prompt and gets one text"
            )
    if prompt_file is not None:
        raise UsageError("--prompts and --prompt-file can't be combined")


def write_answers(model: LoadedModel, settings: Mapping[str, Any], prompts: str, output: "Output") -> None:
    """Print a text after each prompt of a file, in their order; without --json or --null each is one line.

    A line without an answer ends the command, or becomes a JSON object with its error. Raises its error, or InputError
    at the end for lines that have become objects.
    """
    from charrnn.sampling.answers import Failure, answers
    from charrnn.text.sources import Source, check_exists

    sampler, one_line = model.sampler, not (output.json or output.null)
    config = sampler.configure(settings)
    if not sampler.ends(config):
        raise UsageError("--prompts needs texts that end: give --length, --lines or --stop")
    check_exists(prompts)
    given_settings, settings = settings, {**settings, "seed": config.seed}
    if one_line and sampler.writes_several_lines(config):
        if config.lines:
            raise UsageError("--prompts writes one line for each; use --json or --null for several --lines")
        settings["lines"] = 1
    prepare(model, config, ListConfig(), quiet=output.quiet)
    output.note_seed(given_settings, config)
    num_answers = num_failures = 0
    for answer in answers(sampler, Source(prompts).lines(), settings, one_line=one_line):
        num_answers += 1
        if not isinstance(answer, Failure):
            output.write(answer, answer)
        elif output.json:
            num_failures += 1
            console.result_json({"error": str(answer.error), "line": answer.number})
        else:
            raise type(answer.error)(f"line {answer.number} of the prompts: {answer.error}")
    if num_failures:
        raise InputError(f"could not continue {num_failures:,} of {num_answers:,} prompts; their objects say why")


def read_prompt(name: str, vocab: "Vocab", *, quiet: bool) -> str:
    """Read a prompt from a file or stdin, without a final newline, LF or CRLF, that the model does not know."""
    from charrnn.data import texts
    from charrnn.data.cache import Cache

    with Cache.for_user().writable() as cache:
        text = texts.read_prompt(name, vocab, cache)
    if text.endswith("\n") and "\n" not in vocab.chars:
        text = text[:-1] if "\r" in vocab.chars else text[:-1].removesuffix("\r")
        if not quiet:
            console.note("the prompt's final newline is left out, because the model does not know it")
    return text


def has_unread_text() -> bool:
    """Return, without waiting, whether stdin is a file or pipe with text that may be meant as a prompt.

    What the parent process reads from as well, such as the list of a `while read` loop, is not. Without /proc
    that can't be known.
    """
    try:
        import fcntl
        import termios

        stdin, parents = os.fstat(sys.stdin.fileno()), os.stat(f"/proc/{os.getppid()}/fd/0")
        if os.path.samestat(stdin, parents):
            return False
        if stat.S_ISFIFO(stdin.st_mode):
            waiting = fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, bytes(4))
            return any(waiting)
    except (AttributeError, ImportError, OSError):  # a closed stdin, another system
        return False
    return stat.S_ISREG(stdin.st_mode) and stdin.st_size > 0
