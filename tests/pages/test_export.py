"""The exported page as a string: inert, escaped, complete, and no larger than promised."""

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.model.ngrams import count_ngrams
from charrnn.pages import export
from charrnn.pages.export import engine_source, pack, render_player, store_model
from tests.conftest import make_model_file, make_text
from tests.pages.reports import HOSTILE

TEXT = make_text(6000)


@pytest.fixture(scope="module")
def file():
    """A model with n-grams of up to eight characters."""
    vocab = Vocab.from_text(TEXT)
    model = make_model_file(ModelConfig("gru", len(vocab), 6, 16, 1), chars=vocab.chars)
    ngram = count_ngrams(vocab.encode(TEXT), 8, vocab_size=len(vocab))
    return replace(model, ngram={**ngram, "ngram.weights": np.full((8, 2), 0.5)})


def test_the_payload_is_as_docs_formats_says(file):
    """A length, a description in JSON, and the arrays in its order, little endian."""
    stored = store_model(file, "int8", max_ngram_bytes=None)
    data = zlib.decompress(base64.b64decode(pack(stored)))
    start = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:start])
    assert (header["format"], header["cell"], header["hidden_size"], header["num_layers"]) == (1, "gru", 16, 1)
    assert "".join(map(chr, header["chars"])) == file.vocab.chars
    for name, kind, shape in header["tensors"]:
        found = np.frombuffer(data, np.dtype(kind).newbyteorder("<"), int(np.prod(shape)), start)
        np.testing.assert_array_equal(found.reshape(shape), stored.arrays[name])
        start += found.nbytes
    assert start == len(data)
    assert len(header["tensors"]) == len(stored.arrays)


def test_a_page_stays_below_its_limit_with_the_longest_ngrams_that_fit(file, monkeypatch):
    """One character more would be too much."""
    card = [("network", "gru 1x16")]
    whole, none = (len(render_player(store_model(file, "int8", max_ngram_bytes=size), "a", card)) for size in (None, 0))
    middle = (whole + none) // 2
    monkeypatch.setattr(export, "MAX_PAGE_BYTES", middle + export._MAX_CARD_BYTES)
    stored = store_model(file, "int8", max_ngram_bytes=None)
    assert 0 < stored.exact.ngram_order < 8
    assert len(render_player(stored, "a", card)) <= middle + 100
    monkeypatch.setattr(export, "MAX_PAGE_BYTES", 0)
    assert store_model(file, "int8", max_ngram_bytes=None).exact.ngram_order == 0


def test_what_is_hostile_stays_text():
    """In the title, the card and the vocabulary; no other script can run, and nothing can be loaded."""
    model = make_model_file(ModelConfig("rnn", len(set(HOSTILE)), 2, 4, 1), chars="".join(sorted(set(HOSTILE))))
    stored = store_model(model, "int8", max_ngram_bytes=None)
    page = render_player(stored, "</title><script>alert(3)</script>", [("text", "</dd><img src=x onerror=alert(4)>")])
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 4
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";") if rule.strip())
    assert rules.keys() == {"default-src", "style-src", "script-src", "worker-src", "base-uri", "form-action"}
    assert {rules[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}
    assert rules["worker-src"] == "blob:"
    assert re.fullmatch("'sha256-[^ ]+'", rules["script-src"])
    assert not re.search("https?:", page.replace("http://www.w3.org/2000/svg", ""))


def test_the_engine_can_stand_in_a_script_element():
    """It ends no element and begins no comment of HTML."""
    assert not re.search("</script|<!--", engine_source(), re.IGNORECASE)


def test_equal_models_give_equal_pages(file):
    """Whatever the order of their tensors."""
    turned = replace(file, tensors=dict(reversed(file.tensors.items())), ngram=dict(reversed(file.ngram.items())))
    pages = [render_player(store_model(one, "int8", max_ngram_bytes=None), "a", ()) for one in (file, turned)]
    assert pages[0] == pages[1]
