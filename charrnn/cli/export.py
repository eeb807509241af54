"""`charrnn export`: write a model as one web page that writes text in any browser. Never imports PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from charrnn.cli.options import Json, Quiet, output_option
from charrnn.cli.report import check_target, write_file
from charrnn.config import PAGE_PRECISIONS, PagePrecision, SampleConfig
from charrnn.errors import InputError, UsageError
from charrnn.events import bits, bits_per
from charrnn.terminal import cards, completion, console, messages
from charrnn.terminal.completion import one_of
from charrnn.text.characters import END, LABEL_END

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from charrnn.model.file import ModelFile
    from charrnn.pages.export import StoredModel
    from charrnn.runs.folder import Run

DEFAULT_PRECISION: PagePrecision = "int8"
MAX_SCORED = 20_000  # characters on which the cost is measured
# rows of a model's card that every page shows
_SHOWN = ("network", "parameters", "n-grams", "vocabulary", "labels", "split", "score", "test score")


@dataclass(frozen=True)
class Cost:
    """Bits per character on a text: of the model, of the model with fewer n-grams, and of that one rounded.

    is_written: whether the model wrote the text, because its held-out text was not found.
    """

    num_chars: int
    is_written: bool
    exact: float
    cut: float
    rounded: float


def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Run name or model file.",
            show_default="the newest model",
            autocompletion=completion.runs,
        ),
    ] = None,
    output: Annotated[
        str | None,
        output_option("-o", "--output", metavar="FILE", help="Write the page here.", show_default="<run>.html"),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Number format of the weights in the page: int8, bfloat16 or float32.",
            autocompletion=one_of(*PAGE_PRECISIONS),
        ),
    ] = DEFAULT_PRECISION,
    ngrams: Annotated[
        float | None,
        typer.Option(
            metavar="MB",
            help="Include n-grams of at most this size, the shortest first; 0 = none.",
            show_default="what fits a page of 4 MB",
        ),
    ] = None,
    with_names: Annotated[
        bool, typer.Option("--with-names", help="Name the training texts and show the settings on the page.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as one web page that writes text in any browser.

    The page needs no server and no network: open it from a disk, send it by mail, or put it on any
    web host. Prints the page's path. For the same seed the page writes what charrnn sample writes
    with the same weights; --precision float32 stores them exactly.

    \b
    Examples:
      charrnn export
      charrnn export poems -o site/index.html
      charrnn export poems --precision bfloat16 --ngrams 10
    """
    check_options(precision, ngrams)
    from charrnn.model.file import load_model
    from charrnn.runs.models import find_model

    path = find_model(model)
    target = Path(f"{page_title(path)}.html" if output is None else output)
    check_target(str(target), option="--output", example="poems.html")
    file = load_model(path)
    with console.slow_notice("packing the model", quiet=quiet):
        stored, size = write_player(
            target,
            path,
            file,
            precision=cast(PagePrecision, precision),
            max_ngram_bytes=None if ngrams is None else int(ngrams * 1e6),
            with_names=with_names,
        )
    if quiet and not json:
        console.result_path(target)
        return
    cost = measure(path, file, stored, quiet=quiet)
    if not quiet:
        print_cost(file, stored, cost, size)
    if json:
        console.result_json(
            {
                "model": str(path),
                "page": str(target),
                "num_bytes": size,
                "precision": precision,
                "ngram_order": file.ngram_order,
                "page_ngram_order": stored.exact.ngram_order,
                "num_chars": cost.num_chars,
                "is_written": cost.is_written,
                "bits_per_char": cost.exact,
                "cut_bits_per_char": cost.cut,
                "page_bits_per_char": cost.rounded,
            }
        )
    else:
        console.result_path(target)


def check_options(precision: str, ngrams: float | None) -> None:
    """Check the values of options before anything is loaded."""
    if precision not in PAGE_PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PAGE_PRECISIONS)}, not {precision!r}")
    if ngrams is not None and not 0 <= ngrams <= 1e6:
        raise UsageError(f"--ngrams must lie between 0 and 1,000,000 megabytes, not {ngrams:g}")


def page_title(path: Path) -> str:
    """Return what a page calls a model: the name of its run or file, without a suffix."""
    from charrnn.model.file import name_model

    return name_model(path).removesuffix(".safetensors")


def write_player(
    target: Path,
    path: Path,
    file: "ModelFile",
    *,
    precision: PagePrecision = DEFAULT_PRECISION,
    max_ngram_bytes: int | None = None,
    with_names: bool = False,
) -> "tuple[StoredModel, int]":
    """Write a model's page; return what it holds, and its size in bytes. path: of the model file."""
    from charrnn.pages.export import render_player, store_model

    stored = store_model(file, precision, max_ngram_bytes=max_ngram_bytes)
    title = page_title(path)
    shown = [*_SHOWN, "text", "training"] if with_names else _SHOWN
    rows = [row for row in cards.card_rows(cards.card(title, stored.exact)) if row[0] in shown]
    page = render_player(stored, title, [*rows, ("precision of this page", precision)])
    write_file(target, page)
    return stored, len(page.encode())


def write_run_player(run: "Run") -> Path:
    """Write the page of a run's model next to it, with the default settings; return its path."""
    from charrnn.model.file import load_model
    from charrnn.runs.folder import PLAYER_NAME

    target = run.folder / PLAYER_NAME
    write_player(target, run.model_path, load_model(run.model_path))
    return target


def measure(path: Path, file: "ModelFile", stored: "StoredModel", *, quiet: bool) -> Cost:
    """Measure what a page costs, on the model's held-out text or else on a text that the model writes."""
    from charrnn import precompile
    from charrnn.sampling.likelihood import text_nats

    def bits_per_char(one: "ModelFile") -> float:
        return bits(float(text_nats(one, ids, context=context).mean()))

    with console.slow_notice(messages.compiling("measuring what the page costs"), quiet=quiet):
        precompile.for_exporting()
    with console.slow_notice("measuring what the page costs in bits", quiet=quiet):
        found = find_held_out(path, file)
        ids, context = found or write_text(file)
        exact = bits_per_char(file)
        cut = exact if stored.exact.ngram_order == file.ngram_order else bits_per_char(stored.exact)
        return Cost(len(ids), found is None, exact, cut, bits_per_char(stored.rounded))


def find_held_out(path: Path, file: "ModelFile") -> "tuple[NDArray[Any], NDArray[Any]] | None":
    """Find the beginning of a model's held-out text, and the characters before it; None if the text is missing."""
    from charrnn.data.cache import Cache
    from charrnn.runs.models import find_training_text

    try:
        with Cache.for_user().writable() as cache:
            corpus = find_training_text(path, file, None, cache)
    except InputError:
        return None
    return corpus.valid_ids[:MAX_SCORED], corpus.valid_context


def write_text(file: "ModelFile") -> "tuple[NDArray[Any], NDArray[Any]]":
    """Let a model write a text at temperature 1, as ids, and return it with the characters before it."""
    from charrnn.sampling.sampler import Sampler

    sampler = Sampler(file)
    length = 500 if sampler.writes_documents else MAX_SCORED
    config = SampleConfig(length=length, temperature=1.0, seed=0, num_samples=MAX_SCORED // length)
    texts = []
    for stream in sampler.streams(config):
        label = stream.opening.label
        start = "" if label is None else file.vocab.to_chars(label) + LABEL_END
        texts.append(start + file.vocab.to_chars("".join(stream)))
    return file.vocab.encode(END.join(texts))[:MAX_SCORED], sampler.encode_prompt(config)


def print_cost(file: "ModelFile", stored: "StoredModel", cost: Cost, size: int) -> None:
    """Say how large a page is, and what it costs in bits."""
    unit = bits_per(file.vocab.unit)
    text = "its own text" if cost.is_written else "held-out text"
    order, page_order = file.ngram_order, stored.exact.ngram_order
    console.note(
        f"{size / 1e6:.2f} MB; rounding costs {round(cost.rounded - cost.cut, 4) + 0.0:.4f} {unit} "
        f"({cost.rounded:.4f} on {cost.num_chars:,} {file.vocab.unit}s of {text})"
    )
    if page_order < order:
        left_out = f"n-grams longer than {page_order} are" if page_order else "its n-grams are"
        console.note(f"{left_out} left out, which costs {cost.cut - cost.exact:.4f} {unit}; --ngrams MB includes more")
