"""Files that must be refused: foreign, wrong or hostile ones, most of them with a right checksum."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import ModelFileError
from charrnn.model.container import FORMAT_VERSION, read_tensors, write_tensors
from charrnn.model.file import load_model, save_model
from charrnn.text.characters import END, LABEL_END
from tests.model.model_files import CHARS, DIGEST, ZEROS, make_model, meta_of, naive_write, refused, seal, unseal

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@given(data=st.binary(max_size=200))
def test_no_bytes_are_read_as_a_model(tmp_path_factory, data):
    """Random bytes are refused."""
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(data)
    refused(path)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(ZEROS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(
    value=JSON_VALUES,
    place=st.sampled_from(["header", "__metadata__", "charrnn", "tensor", "document", DIGEST, "format", "kind"]),
)
def test_no_json_is_read_as_a_model(tmp_path_factory, value, place):
    """Any JSON value anywhere in the header is refused and crashes nothing, even if the checksum is right."""
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
    """Whatever is in the place of the description, the result is one error."""
    path.write_bytes(seal(header))
    refused(path)


def with_config(**changes):
    """Make a function that changes fields of the configuration in a model's description."""
    return lambda model: {**meta_of(model), "config": {**asdict(model.config), **changes}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: {**meta_of(model), "format": FORMAT_VERSION + 1}, f"format {FORMAT_VERSION + 1}"),
        (lambda model: {**meta_of(model), "format": "1"}, "format"),
        (lambda model: {**meta_of(model), "format": None}, "format"),
        (lambda model: {**meta_of(model), "kind": "state"}, "name the model.safetensors in its folder"),
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
def test_an_invalid_description_is_refused(path, change, words):
    """It is refused though its checksum is right, and nothing is allocated for the sizes it claims."""
    model = make_model()
    document = {"format": FORMAT_VERSION, "kind": "model", **change(model)}
    path.write_bytes(naive_write(model.tensors, document))
    assert words in refused(path)


def without(name):
    """Make a function that leaves out a tensor."""
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


def changed(name, function):
    """Make a function that replaces a tensor by a function of it."""
    return lambda tensors: {**tensors, name: function(tensors[name])}


def with_value(value):
    """Make a function that copies a tensor and sets its last value."""

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
    """A tensor that is missing, extra, misshapen, of another type or not finite is named."""
    model = make_model()
    write_tensors(path, change(model.tensors), kind="model", meta=meta_of(model))
    assert words in refused(path)


ODD_LABELS = [
    {},
    {"": 1},
    {"a": 0},
    {"a": 1.0},
    {"a" * 65: 1},
    {"z": 1},
    {"\ud800": 1},
    {f"{'a' * (number % 60)}b{'c' * (number // 60)}": 1 for number in range(1001)},
]


def replace_labels(labels):
    """Return the parts of a model that say it has these labels."""
    chars = "".join(sorted(set(CHARS) | {END, LABEL_END}))
    config = replace(
        make_model().config, vocab_size=len(chars), reset_id=chars.index(END), label_id=chars.index(LABEL_END)
    )
    tensors = {name: np.ones(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    provenance = {"text": {"labels": labels}}
    return {"config": config, "vocab": Vocab(chars), "tensors": tensors, "provenance": provenance}


def test_a_model_with_labels_is_read(path):
    """The odd ones below have nothing else that is odd."""
    model = replace(make_model(), **replace_labels({"a": 2, "bc": 1}))
    save_model(path, model)
    assert load_model(path).labels == {"a": 2, "bc": 1}


@pytest.mark.parametrize(
    "odd",
    [
        {"provenance": {"text": []}},
        {"provenance": {"text": {"paths": "a.txt"}}},
        {"provenance": {"text": {"paths": [1]}}},
        {"provenance": {"split": {"num_train": "9"}}},
        {"provenance": {"training": 3}},
        {"provenance": {"split": {"num_train": -1}}},
        {"provenance": {"split": {"num_valid": 10**30}}},
        {"provenance": {"split": {"num_test": True}}},
        {"provenance": {"split": {"valid_fraction": 7.0}}},
        {"provenance": {"split": {"encoding": None}}},
        {"provenance": {"split": {"documents": "\ud800"}}},
        {"provenance": {"split": {"valid": "a\0b"}}},
        {"provenance": {"training": {"init_from": 5}}},
        {"provenance": {"text": {"paths": ["a\0b"]}}},
        {"provenance": {"text": {"paths": ["\ud800"]}}},
        {"provenance": {"text": {"paths": ["x" * 40_000]}}},
        {"provenance": {"text": {"paths": ["a"] * 15_000}}},
        {"provenance": {"text": {"sha256": "12ab"}}},
        {"provenance": {"text": {"sha256": 5}}},
        {"provenance": {"text": {"key": f"../{'0' * 61}"}}},
        {"provenance": {"text": {"key": "A" * 64}}},
        {"provenance": {"text": {"key": "0" * 64 + "\n"}}},
        {"scores": []},
        {"scores": {"nats_per_char": "low"}},
        {"scores": {"network": "low"}},
        {"scores": {"test": {"num_chars": None}}},
        {"scores": {"nats_per_char": float("nan")}},
        {"scores": {"note": float("inf")}},
        {"vocab": Vocab("abcdefgh\ud800")},
        {"vocab": Vocab("abcdefg\u00e9\udce9")},
        {"config": replace(make_model().config, reset_id=len(CHARS))},
        {"config": replace(make_model().config, label_id=0)},
        {"provenance": {"text": {"labels": {"a": 1}}}},
        {"provenance": {"text": {"labels": ["a"]}}},
        *(replace_labels(labels) for labels in ODD_LABELS),
        {"tensors": {**make_model().tensors, "head.bias": np.full(len(CHARS), 3e38, np.float32)}},
        {"tensors": {**make_model().tensors, "head.bias": np.full(len(CHARS), -3e38, np.float32)}},
        {"tensors": {**make_model().tensors, "head.bias": np.full(len(CHARS), np.nan, np.float32)}},
    ],
    ids=lambda odd: ascii(odd)[:80],
)
def test_an_odd_model_is_neither_read_nor_written(path, odd):
    """No reader of a model has to check it again, and no writer can make a file that is refused."""
    model = replace(make_model(), **odd)
    document = {"format": FORMAT_VERSION, "kind": "model", **meta_of(model)}
    path.write_bytes(naive_write(model.tensors, document))
    message = refused(path)
    assert message.startswith("damaged or not a charrnn model (")
    assert len(message) < 300
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match="not written, because it could not be read again"):
        save_model(path, model)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("kind", ["model", "state"])
def test_numbers_that_json_lacks_are_refused(path, kind, number):
    """In either kind of file; `info --json` would print them again."""
    document = json.dumps({"format": FORMAT_VERSION, "kind": kind, DIGEST: ZEROS, "note": "X"}).replace('"X"', number)
    path.write_bytes(seal(json.dumps({"__metadata__": {"charrnn": document}})))
    message = refused(path, lambda path: read_tensors(path, kind=kind))
    assert message == f"damaged or not a charrnn {kind} ({number} is not a finite number)"
    path.unlink()
    if number != "1e999":
        with pytest.raises(ModelFileError, match="not written"):
            write_tensors(path, {}, kind=kind, meta={"note": float(number)})
        assert not path.exists()


def test_a_description_too_large_for_its_file_is_not_written(path):
    """Neither one with too many parts nor one that is too long."""
    for note in (["a"] * 30_000, "x" * (5 << 20)):
        with pytest.raises(ModelFileError, match="not written"):
            write_tensors(path, {}, kind="state", meta={"note": note})
    assert not path.exists()


@pytest.mark.parametrize("long", ["x" * 1_000_000, ["y" * 1000] * 1000, 10**4000], ids=["text", "list", "number"])
@pytest.mark.parametrize("place", ["format", "kind", "config", "cell", "setting"])
def test_an_error_repeats_little_of_the_file(path, long, place):
    """However long the value that is wrong."""
    model, document = make_model(), {"format": FORMAT_VERSION, "kind": "model", **meta_of(make_model())}
    if place == "cell":
        document["config"]["cell"] = long
    elif place == "setting":
        document["config"][str(long)] = 1
    else:
        document[place] = long
    path.write_bytes(naive_write(model.tensors, document))
    assert len(refused(path)) < 400


def test_models_and_states_are_not_mistaken_for_each_other(path):
    """Each kind of file is refused where the other is expected, and the message names the kind."""
    write_tensors(path, {"a": np.zeros(3)}, kind="state", meta={})
    assert "state" in refused(path)
    assert read_tensors(path, kind="state")[0]["a"].tolist() == [0, 0, 0]
    save_model(path, make_model())
    assert "model" in refused(path, lambda path: read_tensors(path, kind="state"))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_types_that_numpy_lacks_are_refused(path, dtype):
    """A file with a right checksum may hold them; the error is a ModelFileError too."""
    model = make_model()
    document = {"format": FORMAT_VERSION, "kind": "model", DIGEST: ZEROS, **meta_of(model)}
    size = {"BF16": 2, "F8_E4M3": 1}[dtype]
    header = {
        "__metadata__": {"charrnn": json.dumps(document)},
        "head.bias": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]},
    }
    text = json.dumps(header, separators=(",", ":"))
    path.write_bytes(seal(text + " " * (-len(text) % 8), b"\1" * size))
    refused(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 63]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]},
        {"dtype": "F32", "shape": [1], "data_offsets": {"1": 4}},
        {"dtype": "F32", "shape": [1], "data_offsets": []},
        {"dtype": "F32", "shape": [1]},
        ["data_offsets"],
        None,
    ],
)
def test_wrong_offsets_are_refused(path, entry):
    """A header can't make the reader allocate or read more than the file holds."""
    document = {"format": FORMAT_VERSION, "kind": "model", DIGEST: ZEROS, **meta_of(make_model())}
    path.write_bytes(seal(json.dumps({"__metadata__": {"charrnn": json.dumps(document)}, "a": entry}), b"\0" * 4))
    refused(path)


def test_sealing_a_good_header_again_gives_the_file(whole):
    """The tests below change only one thing in the header."""
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
def test_a_duplicate_key_is_refused(path, whole, old, new):
    """Two programs could read such a file differently, so it is refused though its checksum is right."""
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
        ('{"__metadata__":', ' {"__metadata__":'),
        ("]}}", "]}}        "),
    ],
    ids=[
        "space",
        "escape",
        "space in the document",
        "escape in the document",
        "float",
        "bool",
        "space before",
        "space after",
    ],
)
def test_a_header_that_is_not_canonical_is_refused(path, whole, old, new):
    """A model has one form as bytes, so comparing files compares models."""
    header, body = unseal(whole)
    assert header.count(old) == 1
    path.write_bytes(seal(header.replace(old, new), body))
    refused(path)


def test_tensors_in_another_order_are_refused(path, whole):
    """Entries must be in the order of their data."""
    header, body = unseal(whole)
    entries = json.loads(header)
    moved = {name: entries[name] for name in ("__metadata__", *reversed([*entries][1:]))}
    text = json.dumps(moved, separators=(",", ":"))
    path.write_bytes(seal(text + " " * (-len(text) % 8), body))
    assert "not as charrnn writes it" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["head.weight"].update(header["head.bias"]),
        lambda header: header.pop("head.bias"),
        lambda header: header["head.bias"].update(shape=[1.5]),
        lambda header: header["head.bias"].update(shape=[1 << 62]),
        lambda header: header["head.bias"].update(dtype="F64"),
        lambda header: header["head.bias"].update(dtype=None),
        lambda header: header["head.bias"].update(extra=1),
        lambda header: header["head.bias"]["data_offsets"].append(0),
        lambda header: header["embedding.weight"]["data_offsets"].reverse(),
    ],
    ids=[
        "overlap",
        "gap",
        "half a size",
        "a huge size",
        "another type",
        "no type",
        "another key",
        "three offsets",
        "reversed offsets",
    ],
)
def test_tensors_that_do_not_fill_the_file_are_refused(path, whole, change):
    """Entries of a canonical header with a right checksum must describe all bytes of the file, each once."""
    header, body = unseal(whole)
    entries = json.loads(header)
    change(entries)
    text = json.dumps(entries, separators=(",", ":"))
    path.write_bytes(seal(text + " " * (-len(text) % 8), body))
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
    """Files of other programs are called foreign."""
    path.write_bytes(data)
    assert refused(path).startswith("damaged or not a charrnn model (its ")


@pytest.mark.parametrize("place", ["gone.safetensors", ".", "gone/model.safetensors"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, place):
    """The error is of the same kind as for damage."""
    refused(tmp_path / place)


def test_a_file_used_as_a_folder_is_refused(path):
    """The system's error about the path becomes a ModelFileError."""
    path.write_bytes(b"")
    refused(path / "model.safetensors")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("odd"), "odd"),
        (MemoryError(), "larger than this machine's memory"),
    ],
)
def test_errors_of_the_system_are_reported(path, whole, monkeypatch, error, words):
    """The message names the file and says what the system said."""

    def fail(*_arguments):
        raise error

    path.write_bytes(whole)
    monkeypatch.setattr("charrnn.model.container._read_header", fail)
    assert refused(path) == words


@posix
@pytest.mark.parametrize("device", ["fifo", "/dev/zero"])
def test_fifos_and_devices_are_refused(tmp_path, device):
    """Opening a FIFO without a writer would hang, and reading a device would never end."""
    path = tmp_path / "fifo" if device == "fifo" else Path(device)
    if device == "fifo":
        os.mkfifo(path)

    def hangs(_number, _frame):
        raise AssertionError("loading hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    try:
        refused(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory_to_refuse(path):
    """Return the peak of bytes that Python and numpy allocate while a file is refused."""
    refused(path)  # imports and caches are not the file's cost
    tracemalloc.start()
    try:
        refused(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@posix
@pytest.mark.parametrize("size", [1 << 30, 1 << 40])
def test_a_huge_sparse_file_takes_little_memory(path, whole, size):
    """Behind a good file, or in place of one, a hole is not read."""
    for data in (whole, b"", (1 << 22).to_bytes(8, "little"), (size // 2).to_bytes(8, "little")):
        path.write_bytes(data)
        os.truncate(path, size)
        assert memory_to_refuse(path) < 16 << 20


@pytest.mark.parametrize(
    "filler",
    ['"a":{},', '"a":[],', '"a":0,', "[" * 7, "[],[],", "{},"],
)
@pytest.mark.parametrize("place", ["header", "document"])
def test_too_many_small_parts_are_refused_before_they_are_parsed(path, filler, place):
    """Each would become an object of a hundred bytes or more; memory stays within a few times the file's size."""
    many = filler * ((1 << 21) // len(filler))
    if place == "document":
        many = json.dumps({"__metadata__": {"charrnn": "{" + many}})
    path.write_bytes(seal(many if place == "document" else "{" + many))
    assert memory_to_refuse(path) < 6 * path.stat().st_size


@posix
def test_loading_takes_twice_the_files_memory(path):
    """The peak of resident memory in a new process grows by the file's bytes and the tensors, and little more."""
    config = ModelConfig("gru", vocab_size=len(CHARS), embedding_dim=3, hidden_size=1400, num_layers=1)
    tensors = {name: np.ones(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    save_model(path, replace(make_model(), config=config, tensors=tensors))
    program = """if True:
        import resource, sys
        from charrnn.model.file import load_model
        small, large = sys.argv[1:]
        load_model(small)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load_model(large)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    small = path.with_name("small.safetensors")
    save_model(small, make_model())
    done = subprocess.run([sys.executable, "-c", program, small, path], capture_output=True, text=True, check=True)
    kib = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * kib < 2.5 * path.stat().st_size


@pytest.mark.parametrize("announced", [1, 7, 8, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused(path, whole, announced):
    """Its length is checked before it is read."""
    path.write_bytes(announced.to_bytes(8, "little") + whole[8:])
    assert refused(path).startswith("damaged or not a charrnn model (its header is ")
    assert memory_to_refuse(path) < 1 << 20
