"""The file format: what is written is what is read, and nothing else is ever read."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.config import CELLS, ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import CharrnnError, ModelFileError
from charrnn.model.file import FORMAT_VERSION, ModelFile, load_model, read_tensors, save_model, write_tensors

CHARS = "\n\"'\\abcé\u2028\U0001f600"
DIGEST = "file_sha256"  # the key of the checksum
ZEROS = "0" * 64
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


def make_model(cell="gru", *, seed=0, num_layers=2):
    """A small model with weights of no meaning and none of them zero."""
    config = ModelConfig(cell=cell, vocab_size=len(CHARS), embedding_dim=3, hidden_size=5, num_layers=num_layers)
    rng = np.random.default_rng(seed)
    tensors = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in config.tensor_shapes().items()}
    scores = {"nats_per_char": 1 / 3, "step": 7, "whole": True, "note": 'a "quoted" \\ line\n'}
    provenance = {"text": {"paths": ["/tmp/né/[/]\udcff.txt"], "sha256": "ab" * 32}, "split": {"num_train": 18}}
    return ModelFile(config, Vocab(CHARS), tensors, scores, provenance)


def meta_of(model):
    """A model's description, for files that write_tensors is to make wrong in one respect."""
    return {
        "config": asdict(model.config),
        "vocab": model.vocab.chars,
        "scores": model.scores,
        "provenance": model.provenance,
    }


def equal(one, other):
    """Whether two models agree in everything, weights bit for bit."""
    facts = [(model.config, model.vocab, model.scores, model.provenance) for model in (one, other)]
    weights = [{name: (t.dtype, t.shape, t.tobytes()) for name, t in model.tensors.items()} for model in (one, other)]
    return facts[0] == facts[1] and weights[0] == weights[1]


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


def seal(header, body=b""):
    """The bytes of a file with this header text, its 64 zeros replaced by a checksum that matches."""
    header = header.encode()
    data = len(header).to_bytes(8, "little") + header + body
    return data.replace(ZEROS.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def refused(path, load=load_model):
    """Check that a file is refused with an error that names it; return the rest of the message."""
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert type(caught.value) is ModelFileError
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path):
    """Where a test writes its model."""
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good model file."""
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_model(path, make_model())
    return path.read_bytes()


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_model_comes_back_as_it_was(path, cell, num_layers):
    """Sizes, characters, scores, provenance, and every bit of every weight; by path or by name."""
    model = make_model(cell, num_layers=num_layers)
    save_model(path, model)
    assert equal(load_model(path), model)
    assert equal(load_model(str(path)), model)


def test_the_extremes_of_float32_survive(path):
    """Denormals, negative zero and the largest numbers are kept as they are."""
    model = make_model()
    odd = np.array([0.0, -0.0, 1e-45, -3.4028235e38, 1.1754944e-38], np.float32)
    model.tensors["embedding.weight"].flat[:5] = odd
    save_model(path, model)
    assert equal(load_model(path), model)


@pytest.mark.parametrize(
    "view",
    [lambda t: np.asfortranarray(t), lambda t: np.repeat(t, 2, axis=1)[:, ::2], lambda t: t.astype(">f4")],
    ids=["columns first", "every other column", "big-endian"],
)
def test_a_tensors_layout_in_memory_does_not_matter(path, view):
    """A transposed, strided or byte-swapped array is written by its values, not by its memory."""
    model = make_model()
    weights = model.tensors["head.weight"]
    assert (view(weights) == weights).all()
    save_model(path, replace(model, tensors={**model.tensors, "head.weight": view(weights)}))
    assert equal(load_model(path), model)


@pytest.mark.parametrize("words", [ZEROS, f'"{DIGEST}": "{ZEROS}"', f'\\"{DIGEST}\\": \\"{ZEROS}', DIGEST])
def test_a_description_that_looks_like_the_checksum_survives(path, words):
    """Sixty-four zeros in a text's path, or the key's name, are not taken for the place of the digest."""
    model = replace(make_model(), scores={words: words}, provenance={"text": {"paths": [f"/texts/{words}/a.txt"]}})
    save_model(path, model)
    assert equal(load_model(path), model)


def test_equal_models_are_equal_bytes(tmp_path, whole):
    """Also when the tensors come in another order, from a process with other hashes."""
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from charrnn.checkpoint import load_model, save_model\n"
        "model = load_model(sys.argv[1])\n"
        "model = replace(model, tensors=dict(reversed(model.tensors.items())),\n"
        "                provenance=dict(reversed(model.provenance.items())))\n"
        "save_model(Path(sys.argv[2]), model)\n"
    )
    one, other = tmp_path / "one", tmp_path / "other"
    save_model(one, make_model())
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", script, one, other], check=True, env=environment)
    assert one.read_bytes() == whole
    assert other.read_bytes() == whole


def test_what_was_read_can_be_written_again(path, whole):
    """The description of a file, its old checksum in it, makes the same file anew."""
    path.write_bytes(whole)
    tensors, document = read_tensors(path, kind="model")
    path.unlink()
    write_tensors(path, tensors, kind="model", meta=document)
    assert path.read_bytes() == whole


def test_different_models_are_different_bytes(tmp_path, whole):
    """A weight, a score or a character more is seen in the file."""
    for name, model in {
        "seed": make_model(seed=1),
        "score": replace(make_model(), scores={}),
        "provenance": replace(make_model(), provenance={}),
    }.items():
        save_model(tmp_path / name, model)
        assert (tmp_path / name).read_bytes() != whole


@pytest.mark.parametrize("cell", CELLS)
def test_the_published_layout_is_enough_to_read_a_file(path, cell):
    """Another program needs no code of ours: tensors and description are plain safetensors and JSON."""
    model = make_model(cell)
    save_model(path, model)
    tensors, document = naive_read(path.read_bytes())
    assert {name: tensor.tobytes() for name, tensor in tensors.items()} == {
        name: tensor.tobytes() for name, tensor in model.tensors.items()
    }
    assert {name: tensor.shape for name, tensor in tensors.items()} == model.config.tensor_shapes()
    assert document.pop(DIGEST) != ZEROS
    assert document == {"format": FORMAT_VERSION, "kind": "model", **meta_of(model)}
    library = safetensors.numpy.load_file(path)
    assert library.keys() == tensors.keys()
    assert all((library[name] == tensors[name]).all() for name in tensors)


def test_the_checksum_is_sha256_with_the_digest_zeroed(whole):
    """The documented rule gives the number in the file, which stands there once."""
    digest = naive_read(whole)[1][DIGEST]
    assert len(digest) == 64
    assert whole.count(digest.encode()) == 1
    assert hashlib.sha256(whole.replace(digest.encode(), ZEROS.encode())).hexdigest() == digest


def test_every_flipped_bit_is_noticed(path, whole):
    """Two hundred places drawn from the whole file, and every bit of its first eight bytes."""
    rng = random.Random(20)
    for bit in [*range(64), *rng.sample(range(8 * len(whole)), 200)]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path)


def test_every_flipped_bit_of_the_digest_is_noticed(path, whole):
    """Also those that turn its letters into capitals."""
    start = whole.index(naive_read(whole)[1][DIGEST].encode())
    for bit in range(8 * start, 8 * (start + 64)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path)


def test_every_truncation_is_noticed(path, whole):
    """However much is missing, of either end."""
    rng = random.Random(21)
    for size in [0, 1, 7, 8, 9, len(whole) - 1, *rng.sample(range(len(whole)), 50)]:
        path.write_bytes(whole[:size])
        refused(path)
        path.write_bytes(whole[len(whole) - size :])
        refused(path)


@pytest.mark.parametrize("more", [b"\0", b"\n", b"\0" * 4096, b"whole"])
def test_every_extension_is_noticed(path, whole, more):
    """Before the file or after it; the file written twice, too."""
    for damaged in (whole + more, more + whole, whole + whole):
        path.write_bytes(damaged)
        refused(path)


def test_every_zeroed_block_is_noticed(path, whole):
    """As a disk leaves them that lost power."""
    for start in range(0, len(whole), 64):
        damaged = whole[:start] + b"\0" * len(whole[start : start + 64]) + whole[start + 64 :]
        assert damaged != whole
        path.write_bytes(damaged)
        refused(path)


def test_two_blocks_exchanged_are_noticed(path, whole):
    """Same bytes, other order."""
    path.write_bytes(whole[:-128] + whole[-64:] + whole[-128:-64])
    refused(path)


def test_damage_is_told_apart_from_foreign_files(path, whole):
    """A damaged weight is called damage, with what to do about it."""
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "damaged" in refused(path)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_are_read_as_a_model(tmp_path_factory, data):
    """Noise is refused like anything else that isn't ours."""
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(data)
    refused(path)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(ZEROS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    value=JSON_VALUES,
    place=st.sampled_from(["header", "__metadata__", "charrnn", "tensor", "document", DIGEST, "format", "kind"]),
)
def test_no_json_is_read_as_a_model(tmp_path_factory, value, place):
    """Any value anywhere in the header is refused, not crashed on, even where the checksum is right."""
    document = {"format": FORMAT_VERSION, "kind": "model", DIGEST: ZEROS, **meta_of(make_model())}
    if place in document:
        document[place] = value
    metadata = {"charrnn": json.dumps(value if place == "document" else document)}
    header = {"__metadata__": {"charrnn": value} if place == "charrnn" else metadata}
    if place in ("__metadata__", "tensor"):
        header[place] = value
    path = tmp_path_factory.getbasetemp() / "json"
    path.write_bytes(seal(json.dumps(value if place == "header" else header)))
    refused(path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"__metadata__": null}',
        '{"__metadata__": []}',
        '{"__metadata__": "charrnn"}',
        '{"__metadata__": {}}',
        '{"__metadata__": {"charrnn": null}}',
        '{"__metadata__": {"charrnn": "null"}}',
        '{"__metadata__": {"charrnn": "{}"}}',
        '{"__metadata__": {"charrnn": "{\\"format\\": 1}"}}',
        *(
            json.dumps({"__metadata__": {"charrnn": json.dumps({"format": 1, "kind": "model", DIGEST: digest})}})
            for digest in (5, None, [ZEROS], "", ZEROS, "\ud800" * 64, "é" * 64)
        ),
        '{"__metadata__": {"charrnn": "' + "[" * 100_000 + '"}}',
        "[" * 100_000,
        '{"__metadata__": ' + "9" * 10_000 + "}",
    ],
    ids=lambda header: ascii(header[-60:]) or "nothing",
)
def test_a_header_of_another_form_is_refused(path, header):
    """Whatever stands where the description should be, the answer is one clear error."""
    path.write_bytes(seal(header))
    refused(path)


def with_config(**changes):
    """A change of a model's description: some fields of its configuration."""
    return lambda model: {**meta_of(model), "config": {**asdict(model.config), **changes}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: {**meta_of(model), "format": FORMAT_VERSION + 1}, f"format {FORMAT_VERSION + 1}"),
        (lambda model: {**meta_of(model), "format": "1"}, "format"),
        (lambda model: {**meta_of(model), "format": None}, "format"),
        (lambda model: {**meta_of(model), "kind": "state"}, "a state file, not a model"),
        (lambda model: {**meta_of(model), "vocab": CHARS[:-1]}, f"{len(CHARS) - 1} characters"),
        (lambda model: {**meta_of(model), "vocab": CHARS[::-1]}, ""),
        (lambda model: {**meta_of(model), "vocab": CHARS[:-1] + CHARS[-2]}, ""),
        (lambda model: {**meta_of(model), "vocab": None}, ""),
        (lambda model: {**meta_of(model), "scores": None}, ""),
        (lambda model: {**meta_of(model), "provenance": 5}, ""),
        (lambda model: {**meta_of(model), "config": None}, ""),
        (lambda model: {**meta_of(model), "config": {}}, ""),
        (lambda model: {name: value for name, value in meta_of(model).items() if name != "vocab"}, "vocab"),
        (lambda model: {name: value for name, value in meta_of(model).items() if name != "scores"}, "scores"),
        (with_config(surprise=1), "surprise"),
        (with_config(cell="transformer"), "transformer"),
        (with_config(cell=["gru"]), ""),
        (with_config(cell="lstm"), ""),
        (with_config(vocab_size=len(CHARS) + 1), f"{len(CHARS)} characters"),
        (with_config(vocab_size=None), ""),
        (with_config(hidden_size=4), ""),
        (with_config(hidden_size=65536), ""),
        (with_config(hidden_size=10**30), ""),
        (with_config(hidden_size=5.5), ""),
        (with_config(hidden_size="5"), ""),
        (with_config(hidden_size=None), ""),
        (with_config(hidden_size=float("nan")), ""),
        (with_config(embedding_dim=None), ""),
        (with_config(num_layers=None), ""),
        (with_config(num_layers=1), "layers.1"),
        (with_config(num_layers=64), "layers."),
        (with_config(num_layers=10**9), ""),
        (with_config(num_layers=-1), ""),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(path, change, words):
    """Though its checksum is right; nothing is allocated for what it claims."""
    model = make_model()
    write_tensors(path, model.tensors, kind="model", meta=change(model))
    assert words in refused(path)


def without(name):
    """A change of the tensors: one is left out."""
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


def changed(name, function):
    """A change of the tensors: one becomes a function of what it was."""
    return lambda tensors: {**tensors, name: function(tensors[name])}


def with_value(value):
    """A function that puts a value in a copy of a tensor."""

    def change(tensor):
        tensor = tensor.copy()
        tensor.flat[-1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("head.bias"), "head.bias"),
        (without("layers.1.weight_hh_l0"), "layers.1.weight_hh_l0"),
        (lambda _: {}, "missing"),
        (lambda tensors: {**tensors, "extra": np.zeros(3, np.float32)}, "extra"),
        (changed("head.weight", lambda t: t[:, :-1].copy()), "head.weight"),
        (changed("head.weight", lambda t: t.reshape(-1)), "head.weight"),
        (changed("head.weight", lambda t: t.T.copy()), "head.weight"),
        (changed("head.bias", lambda t: t[None]), "head.bias"),
        (changed("head.bias", lambda t: t[:0]), "head.bias"),
        (changed("head.bias", lambda t: t.astype(np.float64)), "head.bias"),
        (changed("head.bias", lambda t: t.astype(np.float16)), "head.bias"),
        (changed("head.bias", lambda t: t.view(np.int32)), "head.bias"),
        (changed("embedding.weight", with_value(np.nan)), "embedding.weight"),
        (changed("layers.0.bias_ih_l0", with_value(np.inf)), "layers.0.bias_ih_l0"),
        (changed("layers.1.weight_ih_l0", with_value(-np.inf)), "layers.1.weight_ih_l0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(path, change, words):
    """Missing, extra, misshapen, of another type or not finite: each is named, though the checksum is right."""
    model = make_model()
    write_tensors(path, change(model.tensors), kind="model", meta=meta_of(model))
    assert words in refused(path)


def test_a_state_is_not_a_model_and_a_model_not_a_state(path):
    """Each kind of file is refused where the other is wanted, in words that say so."""
    write_tensors(path, {"a": np.zeros(3)}, kind="state", meta={})
    assert "state" in refused(path)
    assert read_tensors(path, kind="state")[0]["a"].tolist() == [0, 0, 0]
    save_model(path, make_model())
    assert "model" in refused(path, lambda path: read_tensors(path, kind="state"))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_types_that_numpy_lacks_are_refused(path, dtype):
    """A sealed file may hold them, and still there is only the one kind of error."""
    model = make_model()
    document = {"format": FORMAT_VERSION, "kind": "model", DIGEST: ZEROS, **meta_of(model)}
    size = {"BF16": 2, "F8_E4M3": 1}[dtype]
    header = {
        "__metadata__": {"charrnn": json.dumps(document)},
        "head.bias": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]},
    }
    path.write_bytes(seal(json.dumps(header), b"\1" * size))
    refused(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 63]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        None,
    ],
)
def test_offsets_that_lie_are_refused(path, entry):
    """A header can't make us allocate or read more than the file holds."""
    document = {"format": FORMAT_VERSION, "kind": "model", DIGEST: ZEROS, **meta_of(make_model())}
    path.write_bytes(seal(json.dumps({"__metadata__": {"charrnn": json.dumps(document)}, "a": entry}), b"\0" * 4))
    refused(path)


def unseal(data):
    """A good file's header text, its checksum replaced by zeros, and its body."""
    size = int.from_bytes(data[:8], "little")
    return data[8 : 8 + size].decode().replace(naive_read(data)[1][DIGEST], ZEROS), data[8 + size :]


def test_sealing_a_good_header_again_gives_the_file(whole):
    """The tests below change the header alone; what they leave of it is right."""
    assert seal(*unseal(whole)) == whole


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"head.bias":{', '"head.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"head.bias":{'),
        (r"\"kind\": \"model\"", r"\"kind\": \"state\", \"kind\": \"model\""),
        (r"\"cell\": \"gru\"", r"\"cell\": \"rnn\", \"cell\": \"gru\""),
    ],
    ids=["header", "document", "config"],
)
def test_a_key_that_stands_twice_is_refused(path, whole, old, new):
    """Two programs could read such a file differently; it is refused though its checksum is right."""
    header, body = unseal(whole)
    assert header.count(old) == 1
    path.write_bytes(seal(header.replace(old, new), body))
    refused(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"head.bias":{', '"head.bias": {'),
        ('"head.bias":{', '"head.\\u0062ias":{'),
        (r"\"kind\": \"model\"", r"\"kind\":  \"model\""),
        (r"\"cell\": \"gru\"", r"\"cell\": \"\\u0067ru\""),
        (r"\"format\": 1", r"\"format\": 1.0"),
        (r"\"format\": 1, ", r"\"format\": true, "),
    ],
    ids=["space", "escape", "space in the document", "escape in the document", "float", "bool"],
)
def test_a_header_that_is_not_canonical_is_refused(path, whole, old, new):
    """A model has one form as bytes, so equal models can be told by comparing files."""
    header, body = unseal(whole)
    assert header.count(old) == 1
    path.write_bytes(seal(header.replace(old, new), body))
    refused(path)


@pytest.mark.parametrize(
    "data",
    [
        safetensors.numpy.save({"a": np.zeros(3, np.float32)}),
        safetensors.numpy.save({"a": np.zeros(3, np.float32)}, {"format": "pt"}),
        safetensors.numpy.save({}, {"charrnn": "{}"}),
        safetensors.numpy.save({}, {"charrnn": "{}", "format": "pt"}),
        pickle.dumps({"a": [1, 2, 3]}),
        b"PK\3\4" + b"\0" * 100,
        b"To be, or not to be, that is the question:\n" * 10,
        b"",
    ],
    ids=["no metadata", "metadata", "empty", "more metadata", "pickle", "zip", "text", "nothing"],
)
def test_foreign_files_are_refused(path, data):
    """What other programs write is called that."""
    path.write_bytes(data)
    assert refused(path) == "not a charrnn file"


@pytest.mark.parametrize("place", ["gone.safetensors", ".", "gone/model.safetensors"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, place):
    """Like damage, with the same kind of error."""
    refused(tmp_path / place)


def test_a_file_used_as_a_folder_is_refused(path):
    """The system's complaint about the path is ours."""
    path.write_bytes(b"")
    refused(path / "model.safetensors")


@posix
@pytest.mark.parametrize("device", ["fifo", "/dev/zero"])
def test_what_never_ends_is_refused_at_once(tmp_path, device):
    """Opening a FIFO without a writer would hang, and a device has no end."""
    path = tmp_path / "fifo" if device == "fifo" else Path(device)
    if device == "fifo":
        os.mkfifo(path)

    def hangs(_number, _frame):
        raise AssertionError("loading hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(5)
    try:
        refused(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# what a file may cost


def memory_to_refuse(path):
    """The largest number of bytes that were held at a time while a file was refused."""
    refused(path)  # what is imported and cached for that isn't the file's cost
    tracemalloc.start()
    try:
        refused(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@posix
@pytest.mark.parametrize("size", [1 << 30, 1 << 40])
def test_a_huge_file_costs_nothing(path, whole, size):
    """A hole behind a good file, or all hole: nothing is read but what a header announces."""
    for data in (whole, b"", (1 << 22).to_bytes(8, "little"), (size // 2).to_bytes(8, "little")):
        path.write_bytes(data)
        os.truncate(path, size)
        assert memory_to_refuse(path) < 16 << 20


@pytest.mark.parametrize(
    "filler",
    ['"a":{},', '"a":[],', '"a":0,', "[" * 7, "[],[],", "{},"],
)
@pytest.mark.parametrize("place", ["header", "document"])
def test_many_small_parts_are_refused_before_they_are_made(path, filler, place):
    """Each would be an object of a hundred bytes and more: a file costs a few times its size, and no more."""
    many = filler * ((1 << 21) // len(filler))
    if place == "document":
        many = json.dumps({"__metadata__": {"charrnn": "{" + many}})
    path.write_bytes(seal(many if place == "document" else "{" + many))
    assert memory_to_refuse(path) < 6 * path.stat().st_size


def test_as_many_parts_as_a_real_file_has_are_read(path):
    """Thousands of paths, a large vocabulary, and signs of JSON in both."""
    paths = [f"/texts/{number}:2,S.txt" for number in range(4000)]
    chars = "".join(map(chr, range(32, 32 + 3000)))
    config = ModelConfig(cell="rnn", vocab_size=len(chars), embedding_dim=1, hidden_size=1, num_layers=1)
    tensors = {name: np.ones(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    model = ModelFile(config, Vocab(chars), tensors, {}, {"text": {"paths": paths}, "split": {"known": chars}})
    save_model(path, model)
    assert equal(load_model(path), model)


@pytest.mark.parametrize("announced", [1, 7, 8, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused(path, whole, announced):
    """Its length is compared before anything is read."""
    path.write_bytes(announced.to_bytes(8, "little") + whole[8:])
    assert refused(path) == "not a charrnn file"
    assert memory_to_refuse(path) < 1 << 20


def test_two_writers_of_one_file_do_not_meet(path, monkeypatch):
    """Each has a temporary file of its own, and never takes one that is there."""
    monkeypatch.setattr("charrnn.model.file.secrets.token_hex", lambda _: "00")
    other = path.parent / f".{path.name}.00.tmp"
    other.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        save_model(path, make_model())
    assert not path.exists()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(path, monkeypatch, function):
    """A full disk or a lost one costs the new file, never the old, and leaves no litter."""
    old, new = make_model(seed=1), make_model(seed=2)
    save_model(path, old)

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises((OSError, CharrnnError), match="No space left"):
            save_model(path, new)
    assert os.listdir(path.parent) == [path.name]
    assert equal(load_model(path), old)
    save_model(path, new)
    assert equal(load_model(path), new)


def test_a_first_write_that_fails_leaves_nothing(path, monkeypatch):
    """Not even half a file under the final name; an interrupt counts as failure."""

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(path, make_model())
    assert os.listdir(path.parent) == []


def test_a_file_is_whole_before_it_has_its_name(path, monkeypatch):
    """All bytes are written and synced under another name in the same folder, then renamed, then the folder synced."""
    steps, sync, rename = [], os.fsync, os.replace

    def note_sync(handle):
        steps.append("sync")
        sync(handle)

    def note_rename(source, target):
        steps.append("rename")
        assert Path(source).parent == path.parent
        assert Path(target) == path
        assert not path.exists()
        assert load_model(source).config == make_model().config
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    save_model(path, make_model())
    assert steps == (["sync", "rename", "sync"] if os.name == "posix" else ["sync", "rename"])


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_permissions_follow_the_umask(path, umask):
    """A model can be shared like any file its owner makes, no more and no less; the umask stays."""
    before = os.umask(umask)
    try:
        save_model(path, make_model())
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        assert os.umask(before) == umask


def test_loading_changes_no_file(path, whole):
    """Reading is reading."""
    path.write_bytes(whole)
    before = path.stat()
    load_model(path)
    assert path.read_bytes() == whole
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "odd",
    [
        {"provenance": {"text": []}},
        {"provenance": {"text": {"paths": "a.txt"}}},
        {"provenance": {"text": {"paths": [1]}}},
        {"provenance": {"split": {"num_train": "9"}}},
        {"provenance": {"training": 3}},
        {"scores": {"nats_per_char": "low"}},
    ],
    ids=str,
)
def test_odd_facts_are_refused_when_the_file_is_read(tmp_path, odd):
    """So that no reader of scores or provenance meets a surprise later."""
    path = tmp_path / "model.safetensors"
    save_model(path, replace(make_model(), **odd))
    with pytest.raises(ModelFileError, match="scores or provenance"):
        load_model(path)
