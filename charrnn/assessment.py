"""What there is to find out about a model on a text, put together: for the terminal, and for the page."""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.adaptation import evaluate_adapting
from charrnn.baselines import yardsticks
from charrnn.checkpoint import ModelFile
from charrnn.evaluation import evaluate, line_costs, predict, predictions
from charrnn.metrics import Assessment, Line
from charrnn.model import CharRNN
from charrnn.passages import Passage
from charrnn.report import Report, render
from charrnn.sampling import Sampler
from charrnn.verbatim import memorised
from charrnn.vocab import UNKNOWN, Ids
from charrnn.wording import card, card_rows, verdict

MOST_SHOWN = 120_000  # characters of the text, on a page
NUM_TOP = 5
NUM_HARDEST = 20
LEAST_OF_A_LINE = 10  # characters: shorter ones are hard by chance
TEMPERATURES = (0.5, 0.8, 1.0)
SAMPLE_LENGTH = 600


def assess(
    file: ModelFile,
    network: CharRNN,
    passage: Passage,
    train: Ids | None,
    *,
    compared: bool,
    adapt_rate: float | None,
    threads: int,
) -> Assessment:
    """Score a passage and, where the training text is at hand and that is wanted, all there is to compare it with.

    adapt_rate: of dynamic evaluation, None for none. network: the file's.
    """
    ids, context, rare = passage.ids, passage.context, file.vocab.id_of(UNKNOWN)
    mixture = file.mixture
    score = evaluate(network, ids, context=context, unknown=passage.unknown, rare=rare, mixture=mixture)
    if train is None:
        return Assessment(score)
    return Assessment(
        score,
        yardsticks(train, ids, context=context, vocab=file.vocab) if compared else (),
        None
        if adapt_rate is None
        else evaluate_adapting(network, ids, context=context, train=train, rare=rare, rate=adapt_rate, mixture=mixture),
        memorised(file, train, ids, threads=threads) if compared else None,
    )


def page(
    path: str,
    file: ModelFile,
    network: CharRNN,
    passage: Passage,
    found: Assessment,
    *,
    log: Sequence[Mapping[str, Any]],
    threads: int,
) -> str:
    """The same, and what the model expects at each character, as one HTML page. log: of the model's run."""
    ids = passage.ids[:MOST_SHOWN]
    shown = predict(network, ids, context=passage.context, num_top=NUM_TOP, mixture=file.mixture)
    sampler = Sampler(file, threads=threads)
    samples = [
        (temperature, "".join(sampler.stream(length=SAMPLE_LENGTH, temperature=temperature, seed=0)))
        for temperature in TEMPERATURES
    ]
    return render(
        Report(
            model=path,
            text=passage.title,
            card=card_rows(card(path, file)),
            score=found.score,
            yardsticks=found.yardsticks,
            verdict=verdict(found.score, found.yardsticks),
            vocab=file.vocab,
            predictions=shown,
            hardest=hardest_lines(network, file, passage, NUM_HARDEST),
            samples=samples,
            adapted=found.adapted,
            copied=found.copied,
            log=log,
        )
    )


def hardest_lines(network: CharRNN, file: ModelFile, passage: Passage, count: int) -> list[Line]:
    """The lines that cost most a character, the hardest first."""
    parts = predictions(network, passage.ids, context=passage.context, mixture=file.mixture)
    lines = (line for line in line_costs(parts, file.vocab) if line.num_chars >= LEAST_OF_A_LINE)
    return heapq.nlargest(count, lines, key=lambda line: line.bits_per_char)
