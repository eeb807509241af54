"""`charrnn info`: list the runs, or describe one model or the cache."""

import shlex
from typing import Annotated

import typer

from charrnn.cli.options import Json
from charrnn.errors import ModelFileError, UsageError
from charrnn.files import checkpoints, kernel_cache, list_models, name_checkpoints, user_cache
from charrnn.hardware import available_cores, select_precision
from charrnn.terminal import cards, completion, console


def info(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Run name or model file.",
            show_default="all runs",
            autocompletion=completion.runs,
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Show where encoded texts and compiled kernels are cached, and their size.")
    ] = False,
    json: Json = False,
) -> None:
    """List the runs, or describe one model.

    \b
    Examples:
      charrnn info
      charrnn info poems
      charrnn info --cache
    """
    if cache and which is not None:
        raise UsageError("--cache and MODEL can't be combined; leave out one of them")
    if cache:
        show_cache(json=json)
    elif which is not None:
        show_model(which, json=json)
    else:
        list_runs(json=json)


def list_runs(*, json: bool) -> None:
    """List the runs. Those without a model and damaged models are named on stderr; damage sets the exit code."""
    from charrnn.model.file import load_model
    from charrnn.runs.models import list_without_model

    paths, stopped = list_models(checkpoints()), list_without_model()
    for name in stopped:
        console.note(f"run {name!r} was stopped before it saved a model; the same charrnn train command resumes it")
    if not paths and not stopped:
        raise ModelFileError(f"no model in {name_checkpoints()}; make one with: charrnn train TEXT")
    facts = []
    for path in paths:
        try:
            facts.append(cards.card(str(path), load_model(path)))
        except ModelFileError as error:
            console.error(str(error))
    if json:
        for card in facts:
            console.result_json(card)
    else:
        console.table([cards.card_line(card) for card in facts], header=cards.CARD_HEADER)
    if len(facts) < len(paths):
        raise typer.Exit(ModelFileError.exit_code)


def show_model(which: str, *, json: bool) -> None:
    """Describe one model."""
    from charrnn.model.file import load_model
    from charrnn.runs.models import find_model

    path = find_model(which)
    card = cards.card(str(path), load_model(path))
    if json:
        console.result_json(card)
    else:
        console.facts(cards.card_rows(card))


def show_cache(*, json: bool) -> None:
    """Show what the cache contains, and how to empty it."""
    from charrnn.data.cache import MAX_CACHE_BYTES, Cache

    cache = Cache.for_user()
    facts = {
        "folder": str(cache.folder),
        "num_texts": len(cache.entries()),
        "num_bytes": cache.num_bytes(),
        "most_bytes": MAX_CACHE_BYTES,
        "kernel_bytes": sum(path.stat().st_size for path in kernel_cache().rglob("*") if path.is_file()),
        "empty": f"rm -r {shlex.quote(str(cache.folder))}",
    }
    if json:
        console.result_json(facts)
    else:
        console.facts(cards.cache_rows(facts))


def show_machine() -> None:
    """Show what a bug report should say: versions, the processor, and what charrnn chose for it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from llvmlite.binding import get_host_cpu_name

    rows = [("Python", platform.python_version()), ("system", platform.platform())]
    for package in ("torch", "numpy", "numba", "llvmlite", "safetensors", "typer"):
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    rows += [
        ("processor", get_host_cpu_name()),
        ("threads", str(available_cores())),
        ("precision", select_precision("auto")),
        ("checkpoints", str(checkpoints())),
        ("cache", str(user_cache())),
        ("kernels", str(kernel_cache())),
    ]
    console.facts(rows)
