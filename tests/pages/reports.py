"""A report in which everything from outside is hostile, for the tests of the page."""

import base64
import json
import re
import zlib
from functools import cache

import numpy as np

from charrnn.data.vocab import Vocab
from charrnn.evaluation.labels import LabelScores
from charrnn.evaluation.scores import Assessment, Baseline, Copied, CopiedShares, Evaluation, Line
from charrnn.inspection.findings import Alike, ClassBits, Excess, Inside, Memory, Reach, ReadableUnit
from charrnn.kernels.head import Predictions
from charrnn.pages.report import Report, render

HOSTILE = (
    "</script><script>alert(1)</script>\n<img src=x onerror=alert(2)> & &lt;\n"
    "\x1b[31mred\x1b[0m\r\n\ta tab\n\u202eoverride\u2066\u200b\u2028\n"
    "e\u0301 caf\u00e9 \U0001f600\U0001f469\u200d\U0001f680x 中文字 \ufe0f\ue000\x00\x7f\x85]]>-->\n\n"
    "{{ 7 * 7 }}{% raw %}\n"
)


def make_predictions(ids, nats, ranks, top, probabilities) -> Predictions:
    """Predictions of a model without n-grams."""
    return Predictions(ids, nats, ranks, top, probabilities, np.zeros((len(ids), 0)))


def random_predictions(vocab: Vocab, text: str, *, is_mixture: bool = False) -> Predictions:
    """Predictions of a random model that is nearly certain at some places."""
    rng = np.random.default_rng(0)
    ids, num = vocab.encode(text), len(text)
    logits = rng.normal(size=(num, len(vocab))) * rng.choice([0.1, 1, 3, 6], size=(num, 1))
    logits[np.arange(num), ids] += rng.choice([-2, 2, 12], size=num)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    own = shares[np.arange(num), ids]
    top = np.argsort(-shares, axis=1, kind="stable")[:, :5]
    ranks = (shares > own[:, None]).sum(1)
    likeliest = np.take_along_axis(shares, top, 1).astype(np.float32)
    some = make_predictions(ids, -np.log(own), ranks.astype(np.int32), top.astype(np.int32), likeliest)
    return some._replace(experts=some.nats[:, None] * rng.uniform(0.5, 2, (num, 2))) if is_mixture else some


def make_inside(text: str, **given) -> Inside:
    """Findings of every part. given: parts to change."""
    rng = np.random.default_rng(1)
    ages = (1.0, 2.0, 3.5, 7.0, 20.0, 100.0, 700.0)
    costs = (2.0, 1.0, 0.6, 0.3, 0.1, 0.02, -0.01)
    norms = 0.9 ** np.arange(200.0)
    chars = sorted(set(text))
    facts = {
        "memory": Memory(
            ages,
            1024,
            500,
            network=Excess(costs, (0.05,) * 7, 100, 20),
            mixture=Excess(tuple(cost / 2 for cost in costs), (0.03,) * 7, None, 10),
        ),
        "gradient": Reach(tuple(norms), tuple(norms / 3), tuple(norms * 3), 64, 0.9),
        "units": [
            ReadableUnit(7 * k, f"feature {k} <b>", 0.9 - 0.1 * k, rng.uniform(-1, 1, len(text)).astype(np.float32))
            for k in range(8)
        ],
        "bits": [
            ClassBits("first letters", 100, 300.0, 350.0, 400.0),
            ClassBits("spaces & newlines", 300, 100.0, 110.0, 90.0),
        ],
        "alike": [Alike(char, ((chars[0], 0.9), (chars[-1], 0.5), (char, -0.1))) for char in chars[:12]],
    }
    return Inside(**(facts | given))


def make_labels(labels: tuple[str, ...], counts, **given) -> LabelScores:
    """Scores of documents of ten characters. counts: (K, K), how many of each label are taken for each label."""
    own, guesses = (np.repeat(places.ravel(), np.ravel(counts)) for places in np.indices(np.shape(counts)))
    nats = np.where(np.arange(len(labels)) == guesses[:, None], 20.0, 30.0)
    prior = np.full(len(labels), np.log(len(labels)))
    return LabelScores(labels, own, np.zeros(len(own), np.int64), np.full(len(own), 10), prior, nats, **given)


def make_assessment(text: str, nats: float, **given) -> Assessment:
    """An assessment with all comparisons."""
    facts = {
        "score": Evaluation(nats, len(text), {"<": 2, "\u202e": 1}),
        "baselines": (Baseline("order <0>", 3.0, "a & b"),),
        "adapted": Evaluation(nats * 0.9, len(text), {}),
        "copied": CopiedShares(Copied(1000, 100, 40), Copied(1000, 50, 35), Copied(2000, 10, 31)),
    }
    return Assessment(**(facts | given))


def make_report(text: str = HOSTILE, *, assessment=None, **given) -> Report:
    """A report on a text. assessment: parts of it to change; given: other parts of the report to change."""
    vocab = given.pop("vocab", None) or Vocab.from_text(text)
    predictions = given.pop("predictions", None) or random_predictions(vocab, text)
    log = [{"event": "plan", "step": 0}]
    for step in range(10, 1000, 10):
        pace = {"learning_rate": 1e-3, "chars_per_second": 5e4 + step}
        log.append({"event": "progress", "step": step, "nats_per_char": 1 + 20 / step, **pace})
        if step % 100 == 0:
            log.append({"event": "evaluated", "step": step, "nats_per_char": 1.1 + 20 / step, "best": step == 800})
    facts = {
        "model": "</title><script>alert(3)</script>/model.safetensors",
        "text": "<b>\u202etxt.\udcff\x1b",
        "card": [("network", "gru 1x8"), ("text", "</style><svg onload=alert(4)>")],
        "assessment": make_assessment(text, float(predictions.nats.sum()), **(assessment or {})),
        "verdict": "Better than order 0.",
        "vocab": vocab,
        "predictions": predictions,
        "hardest": [
            Line(2, "<img src=x onerror=alert(2)>\n", 100.0, 29, num_unknown=1, start=HOSTILE.index("<img")),
            Line(3, "y" * 1000, 50.0, 1000, start=10**6),
        ],
        "samples": [(0.5, HOSTILE), (0.8, "\nfirst line is empty"), (1.0, "")],
        "log": log,
    }
    return Report(**(facts | given))


@cache
def usual_page() -> str:
    """The page with everything on it."""
    return render(make_report())


def words_of(page: str) -> str:
    """The page's words in one line, without its markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def data_of(page: str) -> dict:
    """The page's data, its arrays unpacked."""
    (code,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert not set(code) & set("<>&\u2028")
    data = json.loads(code)
    columns = [(data, key) for key in ("ids", "surprisal", "ranks", "top", "probabilities")]
    for owner, key in [*columns, *((one, "levels") for one in data["colourings"])]:
        width, packed_bytes = owner[key]
        planes = np.frombuffer(zlib.decompress(base64.b64decode(packed_bytes)), np.uint8).reshape(width, -1)
        owner[key] = (planes.astype(np.int64).T * 256 ** np.arange(width)).sum(1)
    return data
