"""Cards: a model's facts as plain values and as rows."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.model.file import ModelFile
from charrnn.terminal import cards
from charrnn.text.characters import END, UNKNOWN


def small_model(chars: str = "\x1ba", **facts: Any) -> ModelFile:
    """Return a model of few characters, with these scores and provenance."""
    config = ModelConfig(cell="rnn", vocab_size=len(chars), embedding_dim=1, hidden_size=1, num_layers=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    return ModelFile(config, Vocab(chars), tensors, facts.get("scores", {}), facts.get("provenance", {}))


def test_a_card_of_a_model_without_facts() -> None:
    """Missing scores and provenance are question marks, not a crash."""
    card = cards.card("runs/poems/model.safetensors", small_model())
    assert card["run"] == "poems"
    assert cards.card_line(card) == ("poems", "rnn 1x1", "10", "?", "?", "?")
    rows = dict(cards.card_rows(card))
    assert rows["text SHA-256"] == "?"
    assert rows["vocabulary"] == r"2 characters: \u001ba"


def test_a_card_has_score_and_text() -> None:
    """The list has bits per character and the texts' names; the card says where the weights come from."""
    model = small_model(
        scores={
            "nats_per_char": 0.693147,
            "num_chars": 1200,
            "step": 15,
            "whole": True,
            "test": {"nats_per_char": 2 * 0.693147, "num_chars": 7},
        },
        provenance={
            "text": {"paths": [f"/home/me/{name}.txt" for name in "abcd"], "sha256": "12ab"},
            "training": {"seed": 1, "init_from": None, "mix": True, "batch_size": 4},
        },
    )
    card = cards.card("checkpoints/poems/model.safetensors", model)
    assert cards.card_line(card)[3:] == ("1.000 bits/char", "1,200", "a.txt, b.txt, c.txt, …")
    rows = dict(cards.card_rows(card))
    assert rows["text"].startswith("/home/me/a.txt, /home/me/b.txt")
    assert rows["score"] == (
        "1.000 bits/char on the held-out text (1,200 bits in all), which chose these weights (step 15)"
    )
    assert rows["test score"] == "2.000 bits/char on the test text"
    assert rows["training"] == "seed 1, mix on, batch size 4"
    assert json.loads(json.dumps(card)) == card


def test_a_card_says_how_many_documents_a_model_knows() -> None:
    """And what their hashes take."""
    model = replace(small_model(), known_documents=np.arange(50_000, dtype=np.uint32))
    card = cards.card("m", model)
    assert card["known_documents"] == 50_000
    assert dict(cards.card_rows(card))["known documents"] == "50,000, as hashes for sample --new, 0.2 MB"
    assert cards.card("m", small_model())["known_documents"] is None
    assert "known documents" not in dict(cards.card_rows(cards.card("m", small_model())))


def test_a_card_of_a_model_of_bytes_has_bits_per_byte() -> None:
    """In the list of runs."""
    card = cards.card("m", small_model("a\udcff", scores={"nats_per_char": 0.693147}))
    assert cards.card_line(card)[3] == "1.000 bits/byte"


def test_a_vocabulary_shows_its_special_symbols() -> None:
    """The end of a document, the symbol for rare characters, and bytes."""
    model = small_model("".join(sorted(["a", "b", END, UNKNOWN])))
    rows = dict(cards.card_rows(cards.card("m", model)))
    assert rows["vocabulary"] == "2 characters, 1 symbol for the end of a document, 1 symbol for rare characters: ab"
    rows = dict(cards.card_rows(cards.card("m", small_model("a\udcff"))))
    assert rows["vocabulary"].startswith("2 bytes: ")
