"""The file format: saved models are loaded unchanged, damage is noticed, and a failed write leaves the old file."""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from charrnn.config import CELLS, ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import CharrnnError, ModelFileError
from charrnn.model import container
from charrnn.model.container import FORMAT_VERSION, read_tensors, write_tensors
from charrnn.model.file import MAX_WEIGHT, ModelFile, load_model, name_model, save_model
from charrnn.text.characters import END
from tests.model.model_files import (
    CHARS,
    DIGEST,
    ZEROS,
    equal,
    make_model,
    meta_of,
    naive_read,
    naive_write,
    refused,
)

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_saved_model_is_loaded_unchanged(path, cell, num_layers):
    """Sizes, characters, scores, provenance and every bit of every weight are the same; a path may be a string."""
    model = make_model(cell, num_layers=num_layers)
    save_model(path, model)
    assert equal(load_model(path), model)
    assert equal(load_model(str(path)), model)


def test_the_extremes_of_float32_survive(path):
    """Denormals, negative zero and the largest weights are saved exactly."""
    model = make_model()
    odd = np.array([0.0, -0.0, 1e-45, -MAX_WEIGHT, 1.1754944e-38], np.float32)
    model.tensors["embedding.weight"].flat[:5] = odd
    save_model(path, model)
    assert equal(load_model(path), model)


@pytest.mark.parametrize(
    "view",
    [np.asfortranarray, lambda t: np.repeat(t, 2, axis=1)[:, ::2], lambda t: t.astype(">f4")],
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
    """Sixty-four zeros in a text's path, or the key's name, are not mistaken for the checksum."""
    model = replace(make_model(), scores={words: words}, provenance={"text": {"paths": [f"{words}.txt"]}})
    save_model(path, model)
    assert equal(load_model(path), model)


def test_equal_models_are_equal_bytes(tmp_path, whole):
    """They are even if the tensors come in another order, from a process with other hash seeds."""
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from charrnn.model.file import load_model, save_model\n"
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
    """A file's description, with its old checksum, makes the same file again."""
    path.write_bytes(whole)
    tensors, document = read_tensors(path, kind="model")
    path.unlink()
    write_tensors(path, tensors, kind="model", meta=document)
    assert path.read_bytes() == whole


def test_different_models_are_different_bytes(tmp_path, whole):
    """Other weights, scores or provenance change the file."""
    for name, model in {
        "seed": make_model(seed=1),
        "score": replace(make_model(), scores={}),
        "provenance": replace(make_model(), provenance={}),
    }.items():
        save_model(tmp_path / name, model)
        assert (tmp_path / name).read_bytes() != whole


@pytest.mark.parametrize("cell", CELLS)
def test_the_published_layout_is_enough_to_read_a_file(path, cell):
    """Another program needs none of our code: tensors and description are plain safetensors and JSON."""
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


def test_the_layout_of_a_file_is_fixed(path):
    """A file written by the published layout alone is the same, byte for byte, and is read."""
    ngrams = {
        "ngram.children": np.array([2, 1, 0], np.uint16),
        "ngram.char": np.array([1, 3, 2], np.uint16),
        "ngram.kept": np.array([0.25, 0.5, 0.125], np.float32),
        "ngram.weights": np.array([[0.7, 0.3], [0.5, 0.5]]),
    }
    for model in (make_model(), replace(make_model("lstm"), ngram=ngrams)):
        document = {"format": FORMAT_VERSION, "kind": "model", **meta_of(model)}
        written = naive_write({**model.tensors, **model.ngram}, document)
        path.write_bytes(written)
        assert equal(load_model(path), model)
        save_model(path, model)
        assert path.read_bytes() == written


def with_documents(known):
    """A model of documents that knows those with these hashes."""
    model = make_model()
    vocab = Vocab(CHARS[:-2] + END + CHARS[-1])
    return replace(model, vocab=vocab, known_documents=np.array(known))


def test_the_hashes_of_known_documents_are_a_tensor(path):
    """Four bytes each; a file without them is as valid."""
    model = with_documents(np.array([0, 5, 2**32 - 1], np.uint32))
    save_model(path, model)
    assert equal(load_model(path), model)
    tensor = safetensors.numpy.load_file(path)["documents.known"]
    assert (tensor.dtype, tensor.tolist()) == (np.uint32, [0, 5, 2**32 - 1])
    without = replace(model, known_documents=None)
    size = path.stat().st_size
    save_model(path, without)
    assert load_model(path).known_documents is None
    assert 12 <= size - path.stat().st_size < 120


@pytest.mark.parametrize(
    "model",
    [
        with_documents(np.array([5, 2], np.uint32)),
        with_documents(np.array([5, 5], np.uint32)),
        with_documents(np.array([5], np.int32)),
        with_documents(np.array([[5]], np.uint32)),
        replace(make_model(), known_documents=np.array([5], np.uint32)),
    ],
    ids=["not sorted", "twice the same", "other numbers", "a matrix", "no documents"],
)
def test_hashes_that_are_not_a_sorted_list_are_refused(path, model):
    """They are searched by bisection."""
    with pytest.raises(ModelFileError, match=r"documents\.known"):
        save_model(path, model)


def test_the_checksum_is_sha256_with_the_digest_zeroed(whole):
    """The documented rule gives the checksum in the file, which occurs there once."""
    digest = naive_read(whole)[1][DIGEST]
    assert len(digest) == 64
    assert whole.count(digest.encode()) == 1
    assert hashlib.sha256(whole.replace(digest.encode(), ZEROS.encode())).hexdigest() == digest


def test_every_flipped_bit_is_noticed(path, whole):
    """The test flips two hundred random bits, and every bit of the first eight bytes."""
    rng = random.Random(20)
    for bit in [*range(64), *rng.sample(range(8 * len(whole)), 200)]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path)


def test_every_flipped_bit_of_the_digest_is_noticed(path, whole):
    """Bits that turn its letters into capitals are noticed too."""
    start = whole.index(naive_read(whole)[1][DIGEST].encode())
    for bit in range(8 * start, 8 * (start + 64)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path)


def test_every_truncation_is_noticed(path, whole):
    """It is noticed however much is missing, at either end."""
    rng = random.Random(21)
    for size in [0, 1, 7, 8, 9, len(whole) - 1, *rng.sample(range(len(whole)), 50)]:
        path.write_bytes(whole[:size])
        refused(path)
        path.write_bytes(whole[len(whole) - size :])
        refused(path)


@pytest.mark.parametrize("more", [b"\0", b"\n", b"\0" * 4096, b"whole"])
def test_every_extension_is_noticed(path, whole, more):
    """More bytes before or after the file are noticed, and so is the file written twice."""
    for damaged in (whole + more, more + whole, whole + whole):
        path.write_bytes(damaged)
        refused(path)


def test_every_zeroed_block_is_noticed(path, whole):
    """A disk that lost power leaves such blocks."""
    for start in range(0, len(whole), 64):
        damaged = whole[:start] + b"\0" * len(whole[start : start + 64]) + whole[start + 64 :]
        assert damaged != whole
        path.write_bytes(damaged)
        refused(path)


def test_swapped_blocks_are_noticed(path, whole):
    """The bytes are the same, in another order."""
    path.write_bytes(whole[:-128] + whole[-64:] + whole[-128:-64])
    refused(path)


def test_damage_is_called_damage(path, whole):
    """The message for a damaged weight or a truncated file says what to do."""
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert refused(path) == "damaged (its checksum does not match); restore it from a copy or train again"
    path.write_bytes(whole[:-1])
    assert refused(path) == "damaged (its length is wrong); restore it from a copy or train again"


def test_a_file_that_shrinks_while_it_is_read_is_refused(path, monkeypatch):
    """Its header was right, and its data are missing."""
    config = ModelConfig("rnn", vocab_size=len(CHARS), embedding_dim=3, hidden_size=300, num_layers=1)
    tensors = {name: np.ones(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    save_model(path, replace(make_model(), config=config, tensors=tensors))
    read_header = container._read_header

    def read_and_cut(handle, file_size):
        header = read_header(handle, file_size)
        os.truncate(path, file_size - 4)
        return header

    monkeypatch.setattr(container, "_read_header", read_and_cut)
    assert "changed while it was read" in refused(path)


def test_as_many_parts_as_a_real_file_has_are_read(path):
    """A file may have thousands of paths and a large vocabulary, with JSON's punctuation in both."""
    paths = [f"{number}:2,S.txt" for number in range(4000)]
    chars = "".join(map(chr, range(32, 32 + 3000)))
    config = ModelConfig(cell="rnn", vocab_size=len(chars), embedding_dim=1, hidden_size=1, num_layers=1)
    tensors = {name: np.ones(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    model = ModelFile(config, Vocab(chars), tensors, {}, {"text": {"paths": paths}, "split": {"known": chars}})
    save_model(path, model)
    assert equal(load_model(path), model)


def test_loading_changes_no_file(path, whole):
    """Neither its bytes, its time nor its folder change."""
    path.write_bytes(whole)
    before = path.stat()
    load_model(path)
    assert path.read_bytes() == whole
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(path.parent) == [path.name]


def test_two_writers_of_one_file_do_not_collide(path, monkeypatch):
    """Each has its own temporary file and never uses an existing one."""
    monkeypatch.setattr("charrnn.files.secrets.token_hex", lambda _: "00")
    other = path.parent / f".{path.name}.00.tmp"
    other.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        save_model(path, make_model())
    assert not path.exists()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(path, monkeypatch, function):
    """If the disk is full or lost, the old file stays, and no other file is left."""
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
    """No partial file appears under the final name; an interrupt counts as a failure."""

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(path, make_model())
    assert os.listdir(path.parent) == []


def test_a_file_is_complete_before_it_gets_its_name(path, monkeypatch):
    """It is written and synced under another name in the same folder, then renamed; then the folder is synced."""
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
    """A model has the permissions of any file that its owner makes; the umask stays."""
    before = os.umask(umask)
    try:
        save_model(path, make_model())
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        assert os.umask(before) == umask


def test_a_model_names_no_folder(path):
    """Neither one that is written, nor an older one, which has paths: it is read and shown without them."""
    provenance = {
        "text": {"paths": ["/home/me/a.txt", "b/c.txt", "-"], "sha256": "ab" * 32},
        "split": {"valid": "/home/me/valid.txt"},
        "training": {"init_from": "/home/me/checkpoints/verse/model.safetensors", "seed": 1},
    }
    names = {
        "text": {"paths": ["a.txt", "c.txt", "-"], "sha256": "ab" * 32},
        "split": {"valid": "valid.txt"},
        "training": {"init_from": "verse", "seed": 1},
    }
    model = replace(make_model(), provenance=provenance)
    document = {"format": FORMAT_VERSION, "kind": "model", **meta_of(model)}
    path.write_bytes(naive_write(model.tensors, document))
    assert load_model(path).provenance == names
    save_model(path, model)
    assert naive_read(path.read_bytes())[1]["provenance"] == names
    assert b"/home" not in path.read_bytes()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("checkpoints/verse/model.safetensors", "verse"),
        ("/home/me/checkpoints/verse/model.safetensors", "verse"),
        ("/home/me/model.safetensors", "model.safetensors"),
        ("copy.st", "copy.st"),
        ("verse", "verse"),
    ],
)
def test_a_model_is_named_after_its_run_or_its_file(path, name):
    """Without the folders above."""
    assert name_model(path) == name
