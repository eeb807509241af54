"""`charrnn sample`: write new text with a trained model. Never imports PyTorch."""

import base64
import dataclasses
import itertools
import os
import stat
import sys
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
    machine_option,
    output_option,
)
from charrnn.config import RESAMPLE, SampleConfig, overlay
from charrnn.data.characters import unescaped, valid_unicode
from charrnn.errors import UsageError
from charrnn.events import bits
from charrnn.terminal import console, messages

if TYPE_CHECKING:
    from pathlib import Path

    from charrnn.data.vocab import Ids, Vocab
    from charrnn.model.file import ModelFile
    from charrnn.sampling.sampler import Stream

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
    unknown: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Prompt characters the model doesn't know: error (stop) or skip.",
            show_default=default(SampleConfig, "unknown"),
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--length",
            help="Characters to write; -1 = endless. A model of bytes counts bytes, up to 3 more to end a character.",
            show_default=default(SampleConfig, "length"),
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
            metavar="FORMAT", help="Number format of the weights: float32, bfloat16 or auto (the fastest here)."
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
      charrnn sample -m names -N 20
      charrnn sample -m names -N 20 --match '[A-Z][a-z]{2,5}(-[A-Z][a-z]+)?'
    """
    from charrnn import precompile
    from charrnn.hardware import count_threads
    from charrnn.model.file import load_model
    from charrnn.sampling.sampler import Sampler
    from charrnn.training.folder import find_model

    settings = given(
        prompt=prompt,
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
    )
    overlay(SampleConfig(), settings)  # checks the values before the model is loaded
    if per_char and not json:
        raise UsageError("--per-char needs --json")
    path = find_model(model)
    file = load_model(path)
    sampler = Sampler(file, threads=count_threads(threads), precision=precision)
    sampler.training_text = read_training_text(path, file) if no_copy else None
    sampler.num_top = NUM_LIKELIEST if per_char else 0
    if prompt_file is not None:
        settings["prompt"] = read_prompt(prompt_file, sampler.vocab, quiet=quiet) + (prompt or "")
    elif prompt is None and not quiet and has_unread_text():
        console.note("stdin is not read; to continue its text, add -f -")
    config = sampler.configure(settings)
    if json and config.length < 0 and not (config.lines or config.stop or sampler.writes_documents):
        raise UsageError("--json prints a sample once it is complete, so give it an end: --length, --lines or --stop")
    with console.slow_notice(messages.COMPILING, quiet=quiet):
        precompile.for_sampling(sampler.precision)
    streams = sampler.streams(config)
    if seed is None and not quiet and not json:
        console.note(f"seed {config.seed}")
    with console.slow_notice("reading the prompt", quiet=quiet):
        streams.read_prompts()
    if json:
        for stream in streams:
            record = sample_record(stream, "".join(stream), sampler.vocab, model=str(path), precision=sampler.precision)
            console.result_json(record)
        return
    start = [config.prompt] if echo and config.prompt else []
    blank_lines = not null and (any("\n" in piece for piece in start) or sampler.writes_several_lines(config))
    for stream in streams:
        if stream.number > 0 and blank_lines:
            console.write(b"\n")
        console.stream(itertools.chain(start, stream), null=null)


def read_prompt(name: str, vocab: "Vocab", *, quiet: bool) -> str:
    """Read a prompt from a file or stdin, without a final newline that the model does not know."""
    from charrnn.data import texts
    from charrnn.data.cache import Cache

    with Cache.for_user().writable() as cache:
        text = texts.read_prompt(name, vocab, cache)
    if text.endswith("\n") and "\n" not in vocab.chars:
        text = text[:-1]
        if not quiet:
            console.note("the prompt's final newline is left out, because the model does not know it")
    return text


def read_training_text(path: "Path", file: "ModelFile") -> "Ids":
    """Read the text that a model learnt from, without the held-out part."""
    from charrnn.data.cache import Cache
    from charrnn.training.folder import find_training_text

    with console.slow_notice("reading the training text"), Cache.for_user().writable() as cache:
        return find_training_text(path, file, None, cache).train_ids


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


def sample_record(stream: "Stream", text: str, vocab: "Vocab", *, model: str, precision: str) -> dict[str, Any]:
    """Return a complete sample as a JSON object."""
    config = stream.opening.config
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("prompt", "seed")}
    return {
        "text": valid_unicode(text),
        "bytes": base64.b64encode(console.faithful(text)).decode() if vocab.has_bytes else None,
        "prompt": valid_unicode(config.prompt),
        "seed": stream.seed,
        "stream": stream.number,
        "settings": settings | {"stop": list(map(valid_unicode, config.stop)), "precision": precision},
        "num_chars": len(vocab.to_chars(text)),
        "seconds": stream.seconds,
        "bits_per_char": bits(stream.nats / stream.num_drawn) if stream.num_drawn else None,
        "log_weight": stream.log_weight,
        "chars": [one._asdict() for one in stream.predictions] if stream.predictions else None,
        "model": model,
    }
