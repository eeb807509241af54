"""Model files for tests of the format: good ones, and ones made by the published layout alone."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import ModelFileError
from charrnn.model.file import ModelFile, load_model

CHARS = "\n\"'\\abcé\u2028\U0001f600"
DIGEST = "file_sha256"  # the key of the checksum
ZEROS = "0" * 64


def make_model(cell="gru", *, seed=0, num_layers=2):
    """A small model with meaningless weights, none of them zero."""
    config = ModelConfig(cell=cell, vocab_size=len(CHARS), embedding_dim=3, hidden_size=5, num_layers=num_layers)
    rng = np.random.default_rng(seed)
    tensors = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in config.tensor_shapes().items()}
    scores = {"nats_per_char": 1 / 3, "step": 7, "whole": True, "note": 'a "quoted" \\ line\n'}
    provenance = {"text": {"paths": ["né [\\]\udcff.txt"], "sha256": "ab" * 32}, "split": {"num_train": 18}}
    return ModelFile(config, Vocab(CHARS), tensors, scores, provenance)


def meta_of(model):
    """A model's description, for tests that write it with one mistake."""
    return {
        "config": asdict(model.config),
        "vocab": model.vocab.chars,
        "scores": model.scores,
        "provenance": model.provenance,
    }


def equal(one, other):
    """Whether two models agree in everything, weights bit for bit."""
    facts = [(model.config, model.vocab, model.scores, model.provenance) for model in (one, other)]
    arrays = [
        {name: (t.dtype, t.shape, t.tobytes()) for name, t in {**model.tensors, **model.ngram}.items()}
        for model in (one, other)
    ]
    known = [None if model.known_documents is None else model.known_documents.tolist() for model in (one, other)]
    return facts[0] == facts[1] and arrays[0] == arrays[1] and known[0] == known[1]


def naive_read(data):
    """Read a file by the published safetensors layout alone: length, JSON header, data."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    document = json.loads(header.pop("__metadata__")["charrnn"])
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        start, stop = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[start:stop], "<f4").reshape(entry["shape"])
    return tensors, document


def naive_write(tensors, document):
    """Write a file by that layout alone: wide numbers first, then by name; the header padded to a multiple of 8."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header = {"__metadata__": {"charrnn": json.dumps({**document, DIGEST: ZEROS}, sort_keys=True)}}
    body = b""
    for name in names:
        array = tensors[name]
        dtype = f"{array.dtype.kind.upper()}{8 * array.itemsize}"
        offsets = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        body += array.tobytes()
    text = json.dumps(header, separators=(",", ":"))
    return seal(text + " " * (-len(text) % 8), body)


def seal(header, body=b""):
    """Return the bytes of a file with this header text, its 64 zeros replaced by a checksum that matches."""
    header = header.encode()
    data = len(header).to_bytes(8, "little") + header + body
    return data.replace(ZEROS.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def unseal(data):
    """Return a good file's header text, its checksum replaced by zeros, and its body."""
    size = int.from_bytes(data[:8], "little")
    return data[8 : 8 + size].decode().replace(naive_read(data)[1][DIGEST], ZEROS), data[8 + size :]


def refused(path, load=load_model):
    """Check that a file is refused with an error that names it; return the rest of the message."""
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert type(caught.value) is ModelFileError
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")
