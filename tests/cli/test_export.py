"""`charrnn export`: the page, what is said about it, and what is refused."""

import base64
import json
import re
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.model.file import load_model, save_model
from charrnn.model.ngrams import count_ngrams
from charrnn.text.characters import END
from tests.cli.conftest import POEMS, TINY, assert_refused, call, make_model, posix
from tests.conftest import make_model_file

MODEL = "checkpoints/poems/model.safetensors"


def header(page: str):
    """The description of the arrays in a page's payload."""
    payload = zlib.decompress(base64.b64decode(re.search(r'id="model">([^<]*)<', page)[1]))
    return json.loads(payload[4 : 4 + int.from_bytes(payload[:4], "little")])


def test_the_newest_model_becomes_a_page_named_after_its_run(copied_home):
    """Stdout is the page's path; stderr says how large it is and what rounding costs on the held-out text."""
    done = call("export")
    assert (done.code, done.text) == (0, "poems.html\n")
    found = re.fullmatch(
        r"(\d\.\d\d) MB; rounding costs (0\.\d{4}) bits/char \((\d\.\d{4}) on 400 characters of held-out text\)\n",
        done.err,
    )
    page = (copied_home / "poems.html").read_bytes()
    assert float(found[1]) == round(len(page) / 1e6, 2)
    score = load_model(copied_home / MODEL).scores["nats_per_char"] / 0.6931471805599453
    assert float(found[3]) - score == pytest.approx(float(found[2]), abs=2e-4)
    assert float(found[2]) < 0.05  # the text is so regular that n-grams predict it almost surely, to 256 levels
    assert [row for row in header(page.decode())["tensors"] if row[1] == "int8"]
    call("export", "poems", "-o", "again.html")
    assert (copied_home / "again.html").read_bytes() == page


def test_json_has_the_facts_and_quiet_prints_only_the_path(copied_home):
    """Bits of the exact model, without the n-grams that are left out, and rounded."""
    done = call("export", "--json", "--precision", "bfloat16", "-o", "page.html")
    (facts,) = done.objects
    size = (copied_home / "page.html").stat().st_size
    assert facts == facts | {"model": MODEL, "page": "page.html", "num_bytes": size, "precision": "bfloat16"}
    assert facts == facts | {"ngram_order": 7, "page_ngram_order": 7, "num_chars": 400, "is_written": False}
    assert facts["bits_per_char"] == facts["cut_bits_per_char"]
    assert facts["page_bits_per_char"] == pytest.approx(facts["bits_per_char"], abs=0.05)
    assert call("export", "-q", "-o", "page.html") == (0, b"page.html\n", "")


def test_without_the_training_text_the_cost_is_measured_on_the_models_own(desk):
    """Also of a model of documents, and of bytes."""
    for chars in ("ab\n", "ab" + END, "ab" + "".join(map(chr, range(0xDC80, 0xDD00)))):
        make_model(desk / "odd <name>.safetensors", chars)
        done = call("export", "odd <name>.safetensors")
        assert (done.code, done.text) == (0, "odd <name>.html\n")
        assert re.search(r"rounding costs 0\.0000 bits/\w+ \(.* on [\d,]+ \w+s of its own text\)\n", done.err)
        assert "<name>" not in (desk / "odd <name>.html").read_text(encoding="utf-8")


def test_ngrams_are_included_to_the_length_that_fits(desk):
    """What is left out, and what that costs, is said."""
    vocab = Vocab.from_text(POEMS)
    file = make_model_file(ModelConfig("gru", len(vocab), 4, 8, 1), chars=vocab.chars)
    counted = count_ngrams(vocab.encode(POEMS), 6, vocab_size=len(vocab))
    save_model(desk / "m.safetensors", replace(file, ngram={**counted, "ngram.weights": np.ones((6, 2))}))
    assert "left out" not in call("export", "m.safetensors", "-o", "all.html").err
    none = call("export", "m.safetensors", "--ngrams", "0", "-o", "none.html")
    assert "\nits n-grams are left out, which costs " in none.err
    some = call("export", "m.safetensors", "--ngrams", "0.002", "--json", "-o", "some.html")
    assert re.search(r"\nn-grams longer than \d are left out, which costs \d\.\d{4} bits/char; --ngrams MB", some.err)
    orders = [facts["page_ngram_order"] for facts in some.objects]
    assert 0 < orders[0] < 6
    sizes = [(desk / f"{name}.html").stat().st_size for name in ("none", "some", "all")]
    assert sizes[0] < sizes[1] <= sizes[0] + 2000 < sizes[2]
    names = [row[0] for row in header((desk / "none.html").read_text(encoding="utf-8"))["tensors"]]
    assert not [name for name in names if name.startswith("ngram")]


def test_only_with_names_the_page_names_the_training_text(copied_home):
    """Nor does it hold the text, its hash or a path."""
    sha256 = load_model(copied_home / MODEL).provenance["text"]["sha256"]
    call("export", "-q", "-o", "page.html")
    call("export", "-q", "-o", "named.html", "--with-names")
    page, named = ((copied_home / name).read_text(encoding="utf-8") for name in ("page.html", "named.html"))
    assert "poems.txt" not in page
    assert "poems.txt" in named
    for text in (page, named):
        assert sha256 not in text
        assert str(copied_home) not in text
        assert POEMS[:20] not in text


def test_mistakes_are_refused_before_anything_is_written(copied_home):
    """In one line each."""
    assert_refused(call("export", "--precision", "int4"), 2, "--precision must be one of int8, bfloat16, float32")
    assert_refused(call("export", "--ngrams", "-1"), 2, "--ngrams must lie between 0 and")
    assert_refused(call("export", "nothing"), 4, "nothing: neither a model file nor a run")
    assert_refused(call("export", "-o", "checkpoints"), 2, "--output 'checkpoints' is not a file name")
    assert_refused(call("export", "-o", "-"), 2, "--output -: stdout has other results; name a file")
    assert_refused(call("export", "-o", "no/page.html"), 1, "no/page.html: can't be written")
    (copied_home / MODEL).write_bytes(b"damaged")
    assert_refused(call("export"), 4, "damaged")
    assert not list(copied_home.glob("*.html"))


@posix
def test_a_page_goes_neither_into_other_results_nor_in_place_of_a_link(copied_home):
    """A page is refused where stdout goes, as /dev/stdout is; a link to a file stays a link."""
    with open("results", "w", encoding="utf-8") as stdout:
        for words in (("export", "-o"), ("eval", "--html")):
            assert_refused(call(*words, "results", stdout=stdout), 2, "results: stdout has other results; name a file")
    page, link = copied_home / "page.html", copied_home / "link.html"
    page.touch()
    link.symlink_to("page.html")
    assert call("export", "-q", "-o", "link.html").text == "link.html\n"
    assert link.is_symlink()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_train_writes_the_page_next_to_the_model_and_the_report_links_to_it(copied_home):
    """A finished run too. A report elsewhere has no link."""
    done = call("train", "poems.txt", "--steps", "20", *TINY, "--export", "--report")
    folder = copied_home / "checkpoints" / "poems"
    assert done.code == 0
    assert done.text == f"{MODEL}\n"
    assert "wrote checkpoints/poems/player.html\nwrote checkpoints/poems/report.html\n" in done.err
    call("export", "-q", "-o", "poems.html")
    assert (folder / "player.html").read_bytes() == (copied_home / "poems.html").read_bytes()
    assert '<a href="player.html">' in (folder / "report.html").read_text(encoding="utf-8")
    shutil.copytree(folder, copied_home / "copy")
    call("eval", "--html", "elsewhere.html", "--no-yardsticks")
    assert "player.html" not in (copied_home / "elsewhere.html").read_text(encoding="utf-8")
