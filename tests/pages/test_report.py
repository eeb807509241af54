"""The report as a string: exact, escaped, inert, and the same for the same facts."""

import base64
import hashlib
import html
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from charrnn.data.characters import name, visible
from charrnn.data.vocab import END, UNKNOWN, Vocab, bytes_as_chars
from charrnn.evaluation.scores import Baseline, Copied, CopiedShares, Evaluation, Line
from charrnn.kernels.head import Predictions
from charrnn.pages import report as module
from charrnn.pages.report import Report, calibration, calibration_error, coloured, packed, render

HOSTILE = (
    "</script><script>alert(1)</script>\n<img src=x onerror=alert(2)> & &lt;\n"
    "\x1b[31mred\x1b[0m\r\n\ta tab\n\u202eoverride\u2066\u200b\u2028\n"
    "e\u0301 caf\u00e9 \U0001f600\U0001f469\u200d\U0001f680x 中文字 \ufe0f\ue000\x00\x7f\x85]]>-->\n\n"
    "{{ 7 * 7 }}{% raw %}\n"
)


def predict(vocab: Vocab, text: str, *, seed: int = 0, num_top: int = 5) -> Predictions:
    """What a model with random thoughts expects of a text, at times quite sure of itself."""
    rng = np.random.default_rng(seed)
    ids, num = vocab.encode(text), len(text)
    logits = rng.normal(size=(num, len(vocab))) * rng.choice([0.1, 1, 3, 6], size=(num, 1))
    logits[np.arange(num), ids] += rng.choice([-2, 2, 12], size=num)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    own = share[np.arange(num), ids]
    top = np.argsort(-share, axis=1, kind="stable")[:, :num_top]
    ranks = (share > own[:, None]).sum(1)
    likely = np.take_along_axis(share, top, 1).astype(np.float32)
    return Predictions(ids, -np.log(own), ranks.astype(np.int32), top.astype(np.int32), likely)


def make_report(text: str = HOSTILE, **given) -> Report:
    """A report about a text, in which all that comes from outside is hostile."""
    vocab = given.pop("vocab", None) or Vocab.from_text(text)
    predictions = predict(vocab, text)
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
        "score": Evaluation(float(predictions.nats.sum()), len(text), {"<": 2, "\u202e": 1}),
        "yardsticks": [Baseline("order <0>", 3.0, "a & b")],
        "verdict": "Better than order 0.",
        "vocab": vocab,
        "predictions": predictions,
        "hardest": [Line(2, "<img src=x onerror=alert(2)>\n", 100.0, 29), Line(3, "y" * 1000, 50.0, 1000)],
        "samples": [(0.5, HOSTILE), (0.8, "\nfirst line is empty"), (1.0, "")],
        "adapted": Evaluation(float(predictions.nats.sum()) * 0.9, len(text), {}),
        "copied": CopiedShares(Copied(1000, 100, 40), Copied(1000, 50, 35), Copied(2000, 10, 31)),
        "log": log,
    }
    return Report(**(facts | given))


def data_of(page: str) -> dict:
    """The page's data, its arrays unpacked."""
    (code,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert not set(code) & set("<>&\u2028")
    data = json.loads(code)
    for key in ("ids", "cost", "ranks", "top", "probabilities"):
        width, packed_bytes = data[key]
        data[key] = np.frombuffer(zlib.decompress(base64.b64decode(packed_bytes)), f"<u{width}")
    return data


def text_of(blocks: str) -> str:
    """What the coloured text says, without its markup."""
    return html.unescape(re.sub(r"</?[pui][^>]*>", "", blocks))


def test_equal_reports_are_equal_pages():
    """No clock, and no order that depends on hashing."""
    assert render(make_report()) == render(make_report())


def test_the_policy_allows_exactly_the_pages_own_style_and_script():
    """Each is there once, and its hash is that of what stands in the page."""
    page = render(make_report())
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    (style,), (script,) = (
        re.findall(r"<style>(.*?)</style>", page, re.S),
        re.findall(r"<script>(.*?)</script>", page, re.S),
    )
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in (style, script)]
    assert html.unescape(policy) == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert page.count("<script") == 2  # the other holds data
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_what_comes_from_outside_is_text():
    """No tag, handler, style or address of a file's or a text's making."""
    page = render(make_report())
    for harm in ("<script>alert", "<img", "<svg onload", "</title><script", "49}", "<b>\u202e"):
        assert harm not in page
    markup = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"<[^>]*\s(on\w+|style|src)\s*=", markup)
    assert {address for address in re.findall(r'href="(.*?)"', markup) if not address.startswith("#")} == set()
    assert "{{ 7 * 7 }}" in page
    assert not set(page) & set("\u202e\u2066\u200b\u2028\x1b\x00\x7f\x85\r\ue000")
    page.encode()  # no lone surrogates


def test_the_text_is_shown_character_by_character():
    """Each has one code point, the same or a sign for it."""
    vocab = Vocab.from_text(HOSTILE)
    shown = text_of(coloured(HOSTILE, predict(vocab, HOSTILE).nats))
    assert shown == "".join(map(visible, HOSTILE))
    assert len(shown) == len(HOSTILE)
    assert "</script><script>alert(1)</script>↵" in shown
    assert "␛[31mred␛[0m␍↵␉a tab↵�override���↵" in shown
    assert "\U0001f600\U0001f469�\U0001f680x 中文字 ��␀␡�]]>" in shown


def test_bytes_that_make_a_character_show_it():
    """At the first of them; a dot stands for each other, and a sign for bytes that make none."""
    text = bytes_as_chars("né中\U0001f600\u202e!") + "\udcff\udce4\udcb8x\udced\udca0\udc80"
    shown = text_of(coloured(text, np.zeros(len(text))))
    assert shown == "né·中··\U0001f600···\ufffd··!" + "\ufffd" * 3 + "x" + "\ufffd" * 3
    assert len(shown) == len(text)


def test_neighbours_of_one_level_share_an_element_and_lines_are_blocks():
    """The first level needs none; the limits belong to the level above."""
    cost = np.array([0.1, 0.2, 0.5, 0.99, 1.0, 9.0, 0.0])
    assert (
        coloured("ab<de\n\n", cost)
        == "<p>ab<i class=a>&lt;d</i><i class=b>e</i><i class=g><u>↵</u></i></p><p><u>↵</u></p>"
    )


def test_only_signs_are_faint():
    """Not the same characters where the text itself has them."""
    assert coloured("a·↵␉\t", np.zeros(5)) == '<p>a·↵␉<u class="t">␉</u></p>'


def test_long_lines_are_cut_into_blocks():
    """A text without newlines isn't one block of 100,000 characters."""
    blocks = coloured("x" * 2500, np.zeros(2500)).split("</p>")
    assert [len(block.removeprefix("<p>")) for block in blocks] == [1000, 1000, 500, 0]


def test_the_data_are_the_predictions():
    """All of them, as exactly as they are shown."""
    vocab = Vocab.from_text(HOSTILE)
    predictions = predict(vocab, HOSTILE)
    data = data_of(render(make_report()))
    num = len(HOSTILE)
    assert data["size"] == len(vocab)
    names = [called for _, called in data["chars"]]
    assert [names[i] for i in data["ids"]] == [name(char) for char in HOSTILE]
    assert data["cost"] == pytest.approx(100 * predictions.nats / np.log(2), abs=0.501)
    assert (data["ranks"] == predictions.ranks).all()
    for k in range(5):
        likely = vocab.decode(predictions.top[:, k])
        assert [names[i] for i in data["top"][k * num : (k + 1) * num]] == [name(char) for char in likely]
        share = data["probabilities"][k * num : (k + 1) * num]
        assert share == pytest.approx(1000 * predictions.probabilities[:, k], abs=0.501)


@pytest.mark.parametrize("size", [300, 70_000])
def test_large_vocabularies_take_wider_numbers(size):
    """Only the characters that occur are listed."""
    vocab = Vocab("".join(map(chr, [*range(0x3000, 0xD800), *range(0xE000, 0xE000 + size)]))[-size:])
    ids = np.array([0, size - 1], vocab.dtype)
    top = np.array([[size - 1, 7], [0, 7]], np.int32)
    few = Predictions(ids, np.ones(2), np.array([size - 1, 0], np.int32), top, np.full((2, 2), 0.5, np.float32))
    data = data_of(f'<script type="application/json" id="data">{packed(vocab, few)}</script>')
    assert len(data["chars"]) == 3
    assert data["ids"].tolist() == [0, 2]
    assert data["top"].tolist() == [2, 0, 1, 1]
    assert data["ranks"].tolist() == [size - 1, 0]
    every = Predictions(
        np.arange(300), np.ones(300), np.zeros(300, np.int32), np.zeros((300, 1), np.int32), np.ones((300, 1))
    )
    assert data_of(f'<script type="application/json" id="data">{packed(vocab, every)}</script>')[
        "ids"
    ].tolist() == list(range(300))


def test_costs_without_end_are_great_ones():
    """An infinite cost or none that is a number gets the deepest colour and the greatest figure."""
    odd = Predictions(
        np.zeros(3, int),
        np.array([np.inf, np.nan, 1e9]),
        np.zeros(3, int),
        np.zeros((3, 1), int),
        np.full((3, 1), np.nan),
    )
    page = render(make_report("aaa", predictions=odd))
    assert data_of(page)["cost"].tolist() == [65535] * 3
    assert "<p><i class=g>aaa</i></p>" in page


def test_a_character_on_its_own_can_be_told_from_others():
    """In the list of the likeliest there is nothing around it."""
    chars = "\n \xa0a\u0301\u202e\ufffd" + END + UNKNOWN + "\udce2"
    data = data_of(render(make_report(chars)))
    assert {shown for shown, _ in data["chars"]} == {"↵", "␣", "a", "◌\u0301", "202E", "\ufffd", "end", "rare", "E2"}


def test_a_text_of_bytes_and_documents():
    """Each byte is one place of the text."""
    text = bytes_as_chars("né") + "\n" + END + UNKNOWN
    page = render(make_report(text))
    called = {called for _, called in data_of(page)["chars"]}
    rest = {"end of document", "one of the rarer characters", "newline", "U+006E LATIN SMALL LETTER N"}
    assert called == {"byte 0xC3", "byte 0xA9"} | rest
    assert "Its characters are bytes" in page
    assert "Its characters are bytes" not in render(make_report())
    page.encode()


def test_a_text_of_one_character():
    """With a vocabulary of as many."""
    page = render(make_report("a", copied=CopiedShares(Copied(1, 0, 0), None, Copied(0, 0, 0))))
    assert "cost: 1 character." in " ".join(page.split())
    assert "<p>a</p>" in page or "<p><i class=" in page
    assert "sampled characters stand" not in page  # nothing was held out to compare with


def test_a_text_of_no_character():
    """There is a sentence instead."""
    nothing = Predictions(*(np.zeros(0, int) for _ in range(3)), np.zeros((0, 5), int), np.zeros((0, 5)))
    page = render(make_report("a", predictions=nothing))
    assert "No character was predicted." in page
    assert "There are no predictions to compare." in page
    assert 'id="data"' not in page


def test_only_the_beginning_of_a_text_is_shown():
    """And that is said."""
    page = render(make_report(score=Evaluation(1e4, 12345, {})))
    assert f"the first {len(HOSTILE)} of 12,345 characters" in " ".join(page.split())


def test_the_head_tells_the_static_score_from_the_adapted():
    """And names what is outside the vocabulary."""
    text = " ".join(
        re.sub(r"<[^>]*>", " ", render(make_report(score=Evaluation(np.log(2) * 200, 100, {"<": 2})))).split()
    )
    assert "2.000 bits per character" in text
    assert "perplexity 4.00" in text
    assert "not scored: U+003C LESS-THAN SIGN 2×." in text
    assert "bits per character while learning from the text as it reads" in text
    assert "while learning" not in render(make_report(adapted=None))
    many = Evaluation(1.0, 1, dict.fromkeys(map(chr, range(0x4E00, 0x4E00 + 13)), 5))
    assert "U+4E09 5×, 3 more." in render(make_report(score=many))


def test_the_models_row_comes_first():
    """Bars are shares of the greatest."""
    rows = render(make_report(score=Evaluation(1.5, 1, {}))).split('<tr class="own">')[1].split("</table>")[0]
    assert re.findall(r'<rect class="(\w+)" width="([\d.]+)"', rows.replace('class="rail" width="100"', "")) == [
        ("own", "50.00"),
        ("other", "100.00"),
    ]
    assert "order &lt;0&gt;" in rows


def test_what_there_is_none_of():
    """Each section says so."""
    page = render(make_report(yardsticks=[], hardest=[], samples=[], log=[], copied=None, verdict="", adapted=None))
    for words in ("No other predictor was measured", "no lines", "No text was sampled", "There is no log"):
        assert words in page
    assert 'id="loss-chart-title"' not in page


def test_the_log_as_curves():
    """The best evaluation is the one the run called so, and what is above the plot is said."""
    page = " ".join(render(make_report()).split())
    assert "predicted best at step 800: 1.623 bits" in page
    assert "Points of up to 4.33 bits are above the plot" in page
    assert "held-out: first 1.876 at step 100, lowest 1.619 at step 900, last 1.619 at step 900" in page
    assert "learning rate: first 0.001 at step 10" in page
    assert "characters per second: first 50,010 at step 10" in page


def test_a_damaged_log_is_read_as_far_as_it_makes_sense():
    """Events of other types, with values missing or absurd, are skipped."""
    good = {"event": "evaluated", "step": 5, "nats_per_char": 1.0, "best": True}
    wrong = [None, "5", True, float("nan"), float("inf"), -1, 10**400, [], {}]
    log = [None, 3, "event", [], {}, {"event": []}, {"event": "progress"}]
    for value in wrong:
        log += [
            {"event": kind, "step": value, "nats_per_char": 1.0, "best": True} for kind in ("progress", "evaluated")
        ]
        log += [
            {"event": kind, "step": 7, "nats_per_char": value, "learning_rate": value, "chars_per_second": value}
            for kind in ("progress", "evaluated")
        ]
    assert "There is no log" in render(make_report(log=log))
    assert "best at step 5: 1.443 bits" in " ".join(render(make_report(log=[*log, good])).split())
    assert "not scored on the way" in render(make_report(log=[{"event": "progress", "step": 0, "nats_per_char": 0}]))


def test_a_step_that_was_taken_again_counts_as_it_went_last():
    """As after a return from a divergence."""
    log = [
        {"event": "evaluated", "step": step, "nats_per_char": nats} for step, nats in [(5, 9.0), (10, 8.0), (5, 2.0)]
    ]
    assert module._values(log, "evaluated", "nats_per_char") == [(5.0, 2.0), (10.0, 8.0)]


def test_calibration_by_hand():
    """Two places, two candidates each: 0.75 came, 0.25 didn't, of two at 0.5 one did."""
    halves = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)
    top = np.array([[0, 1], [0, 1]], np.int32)
    bins = calibration(Predictions(np.array([0, 1]), np.zeros(2), np.zeros(2, np.int32), top, halves))
    found = {place: (one.count, one.probability, one.share) for place, one in enumerate(bins) if one.count}
    assert found == {7: (1, 0.75, 1.0), 2: (1, 0.25, 0.0), 5: (2, 0.5, 0.5)}
    assert calibration_error(bins) == pytest.approx((0.25 + 0.25 + 0 + 0) / 4)
    assert len(bins) == 10


def test_certainty_is_in_the_last_bin():
    """A probability of 1 has no bin of its own."""
    sure = Predictions(np.zeros(1, int), np.zeros(1), np.zeros(1, int), np.zeros((1, 1), int), np.ones((1, 1)))
    assert [one.count for one in calibration(sure)] == [0] * 9 + [1]
    assert calibration_error([]) == 0


def test_long_lines_are_shortened_in_the_table():
    """To what fits."""
    page = render(make_report())
    assert "y" * 199 + "…" in page
    assert "y" * 201 not in page


def test_samples_keep_their_line_breaks():
    """A `pre` swallows its first newline."""
    page = render(replace(make_report(), samples=[(0.8, "\nfirst\n  second")]))
    assert '<pre dir="auto">\n\nfirst\n  second</pre>' in page
    assert "10.0 % of 1,000 sampled characters" in page
