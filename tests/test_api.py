"""The Python API: five names that do what the commands do."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import charrnn
from charrnn.config import ModelConfig
from charrnn.errors import InputError, ModelFileError, UnknownCharacterError, UsageError
from charrnn.model.file import save_model
from charrnn.text.characters import END, LABEL_END
from tests.cli.conftest import call
from tests.conftest import make_model_file, make_text
from tests.labelled import LABELS, naive_logits, naive_nats
from tests.labelled import make_file as make_labelled_file

CHARS = "".join(sorted(set(make_text(500) + "\n")))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a run `toy` of random weights."""
    path = tmp_path / "checkpoints" / "toy" / "model.safetensors"
    path.parent.mkdir(parents=True)
    config = ModelConfig(cell="lstm", vocab_size=len(CHARS), embedding_dim=4, hidden_size=8, num_layers=2)
    save_model(path, make_model_file(config, chars=CHARS, scale=3.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_five_names_are_public():
    """Nothing else is promised; `import charrnn` alone loads neither torch nor numba."""
    assert sorted(charrnn.__all__) == ["CharrnnError", "Model", "__version__", "load", "train"]
    assert all(getattr(charrnn, name) is not None for name in charrnn.__all__)
    assert dir(charrnn) == sorted(charrnn.__all__)  # what help(charrnn) describes
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = charrnn.nothing
    assert (Path(charrnn.__file__).parent / "py.typed").exists()
    code = "import charrnn, sys; sys.exit(bool({'torch', 'numba', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_train_without_pytorch_is_one_of_charrnns_errors(folder, monkeypatch):
    """It says how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    (folder / "text.txt").write_text("abc " * 20, encoding="utf-8")
    with pytest.raises(charrnn.CharrnnError, match=r"needs PyTorch.*pip install torch"):
        charrnn.train("text.txt", steps=1)


def test_sample_is_the_text_of_the_command(folder):
    """Prompt, settings and seed mean the same; echo is the command's --no-echo."""
    settings = {"length": 60, "temperature": 0.9, "seed": 5, "top_k": 7}
    options = ["sample", "-m", "toy", "-p", "ba", "-n", "60", "--temp", "0.9", "--seed", "5", "--top-k", "7"]
    model = charrnn.load("toy")
    text = model.sample("ba", **settings)
    assert call(*options, "--json").objects[0]["text"] == text.removeprefix("ba")
    assert call(*options, "-0").out.decode() == text + "\0"
    assert text.startswith("ba")
    assert model.sample("ba", echo=False, **settings) == text[2:]
    assert "".join(model.stream("ba", **settings)) == text


def test_training_refuses_a_folder_with_a_link_in_it(folder):
    """As the command does, before the text is read."""
    (folder / "checkpoints" / "toy" / "log.jsonl").symlink_to(folder / "victim")
    with pytest.raises(charrnn.CharrnnError, match=r"log\.jsonl is a symbolic link"):
        charrnn.train("gone.txt", run="toy", steps=1, fresh=True)
    assert not (folder / "victim").exists()


def test_many_samples_are_the_seeds_streams(folder):
    """As with -N: the first is the text of one alone."""
    model = charrnn.load(folder / "checkpoints" / "toy" / "model.safetensors")
    texts = model.sample(num_samples=3, length=20, seed=1)
    assert len(set(texts)) == 3
    assert texts[0] == model.sample(length=20, seed=1)


def test_a_list_is_the_one_of_the_command(folder):
    """unique, new and best mean the same; the settings that can't take effect are refused."""
    model = charrnn.load("toy")
    settings = {"length": 3, "seed": 1, "num_samples": 40}
    texts = model.sample(**settings, unique=True, best=10)
    options = ["sample", "-m", "toy", "-n", "3", "-N", "40", "--seed", "1", "--unique", "--best", "10", "-0"]
    assert len(set(texts)) == 10
    assert call(*options).text == "".join(f"{text}\0" for text in texts)
    with pytest.raises(UsageError, match="--unique"):
        model.sample(unique=True, length=3)
    with pytest.raises(InputError, match="no record of its training text"):
        model.sample(new=True)


def test_a_list_that_is_too_short_warns(folder):
    """It has what was found; without any text there is nothing to return."""
    end = len(CHARS) - 1
    config = ModelConfig("lstm", vocab_size=len(CHARS), embedding_dim=4, hidden_size=8, num_layers=1, reset_id=end)
    file = make_model_file(config, chars="".join(sorted(CHARS[:-1] + END)), scale=3.0)
    save_model(folder / "documents", replace(file, known_documents=np.arange(9, dtype=np.uint32)))
    model = charrnn.load("documents")
    with pytest.warns(
        UserWarning, match=r"found \d+ of 40 samples: 40 drawn.*; raise max_draws or temperature, or lower num_samples$"
    ):
        texts = model.sample(num_samples=40, length=9, seed=1, new=True, max_draws=40)
    assert 0 < len(texts) < 40
    with pytest.raises(charrnn.CharrnnError, match="found 0 of 1 samples"):
        model.sample(new=True, length=0, seed=1)


def test_an_endless_stream_is_read_as_far_as_wanted(folder):
    """sample refuses to wait for its end."""
    model = charrnn.load("toy")
    pieces = model.stream(length=-1, seed=1)
    assert next(pieces)
    with pytest.raises(UsageError, match="stream"):
        model.sample(length=-1)


def test_score_is_that_of_the_command(folder):
    """The same sum over the same characters; unknown ones are counted."""
    text = make_text(300) + "é"
    (folder / "text.txt").write_text(text, encoding="utf-8")
    found = charrnn.load("toy").score(text)
    told = call("eval", "text.txt", "-m", "toy", "--no-yardsticks", "--json").objects[0]
    assert found.nats_per_char == pytest.approx(told["nats_per_char"], rel=1e-12)
    assert (found.num_chars, found.num_unknown) == (told["num_chars"], told["num_unknown"]) == (299, 1)
    with pytest.raises(InputError):
        charrnn.load("toy").score("")


def test_next_is_a_distribution_that_score_agrees_with(folder):
    """All characters, the likeliest first, summing to one; the surprisal of a character follows from it."""
    model = charrnn.load("toy")
    likely = model.next("ba")
    values = list(likely.values())
    assert set(likely) == set(CHARS)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True)
    two, three = model.score("ba"), model.score("ban")
    assert 2.718281828 ** (two.nats - three.nats) == pytest.approx(likely["n"], rel=1e-4)


def test_a_saved_model_is_the_model(folder):
    """save and load give the same bytes, and the same text."""
    model = charrnn.load("toy")
    model.save(folder / "copy.safetensors")
    assert (folder / "copy.safetensors").read_bytes() == Path("checkpoints/toy/model.safetensors").read_bytes()
    assert charrnn.load("copy.safetensors").sample(seed=3) == model.sample(seed=3)
    assert "lstm 2x8" in repr(model)


@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        (lambda: charrnn.load("nowhere"), ModelFileError, "nowhere"),
        (lambda: charrnn.load("toy").sample(warmth=1), UsageError, "no setting named 'warmth'"),
        (lambda: charrnn.load("toy").sample(temperature=-1), UsageError, "--temp"),
        (lambda: charrnn.load("toy").sample("é"), UnknownCharacterError, "U\\+00E9"),
        (lambda: charrnn.train([]), UsageError, "at least one"),
        (lambda: charrnn.train("nowhere.txt", steps=1), InputError, "nowhere.txt"),
        (lambda: charrnn.train("text.txt", steps=1, hiden_size=8), UsageError, "hidden_size"),
        (lambda: charrnn.train("text.txt", steps=1, minutes=1), UsageError, "--minutes and --steps"),
    ],
)
def test_mistakes_are_errors_that_name_them(folder, mistake, error, words):
    """All are CharrnnErrors with the message of the command."""
    (folder / "text.txt").write_text(make_text(200))
    with pytest.raises(error, match=words) as caught:
        mistake()
    assert isinstance(caught.value, charrnn.CharrnnError)


def test_train_is_the_command(folder):
    """The same files as `charrnn train`; the same call again returns the finished model, a larger one extends it."""
    (folder / "text.txt").write_text(make_text(2000))
    settings = {"hidden_size": 8, "embedding_dim": 4, "batch_size": 4, "seq_len": 8, "threads": 1}
    settings["precision"] = "float32"
    model = charrnn.train("text.txt", steps=6, run="api", **settings)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    call("train", "text.txt", "--steps", "6", "--run", "cli", *options)
    ours, theirs = (Path(f"checkpoints/{run}/model.safetensors").read_bytes() for run in ("api", "cli"))
    assert ours == theirs
    events = [json.loads(line)["event"] for line in Path("checkpoints/api/log.jsonl").read_text().splitlines()]
    assert (events[0], events[-1]) == ("plan", "finished")
    again = charrnn.train("text.txt", steps=6, run="api", **settings)
    assert again.sample(seed=1, length=50) == model.sample(seed=1, length=50)
    charrnn.train("text.txt", steps=9, run="api", **settings)
    assert any(Path("checkpoints/api").glob("state-9.safetensors"))
    charrnn.train(["text.txt"], steps=2, run="api", fresh=True, **settings)
    assert not any(Path("checkpoints/api").glob("state-9.safetensors"))


def test_a_model_of_bytes_gives_its_bytes(tmp_path, monkeypatch):
    """As surrogate escapes, which it accepts as a prompt and scores; a sample in a log is valid Unicode."""
    monkeypatch.chdir(tmp_path)
    Path("koi8.txt").write_bytes("Мороз и солнце\n".encode("koi8-r") * 40)
    model = charrnn.train("koi8.txt", steps=2, bytes=True, hidden_size=8, batch_size=4, seq_len=8, threads=1)
    prompt = "Мороз".encode("koi8-r").decode("utf-8", "surrogateescape")
    text = model.sample(prompt, length=30, seed=1)
    data = text.encode("utf-8", "surrogateescape")
    assert text.startswith(prompt)
    assert 35 <= len(data) <= 38
    assert call("sample", "-p", prompt, "-n", "30", "--seed", "1", "-0").out == data + b"\0"
    assert model.score(text).num_chars == len(data) - 1
    records = map(json.loads, Path("checkpoints/koi8/log.jsonl").read_text().splitlines())
    assert [record["text"].encode() for record in records if record["event"] == "sample"]


def test_a_model_knows_its_labels():
    """It scores a text given its label, or without; the next character needs one; samples are written for one."""
    file = make_labelled_file(mixed=True)
    model = charrnn.Model(file)
    nats = [naive_nats(file, label, "abc") for label in LABELS]
    assert model.score("abc", label="ab").nats == pytest.approx(nats[1][1], abs=1e-4)
    joint = sum(math.exp(-prior - given) for prior, given in nats)
    score = model.score("abc")
    assert score.nats == pytest.approx(-math.log(joint), abs=1e-4)
    assert score.num_chars == 4
    logits = naive_logits(file, END + "ab" + LABEL_END + "c")
    likely = model.next("c", label="ab")
    assert next(iter(likely)) == file.vocab.chars[int(logits.argmax())]
    with pytest.raises(UsageError, match="needs a label"):
        model.next("c")
    with pytest.raises(UsageError, match="no label 'x'"):
        model.score("abc", label="x")
    assert model.sample(label="ab", seed=1, length=5) == model.sample(label="ab", seed=1, length=5)


@pytest.mark.parametrize(
    ("call_with", "words"),
    [
        (lambda model: model.sample(stop=5), "--stop must be a list of texts, not 5"),
        (lambda model: model.sample(stop={"a": 1}), "--stop must be a list of texts"),
        (lambda model: model.sample(stop=("a", 1)), r"--stop must be a list of texts, not \['a', 1\]"),
        (lambda model: model.sample(num_samples=0), "--num-samples must lie between 1"),
        (lambda model: model.stream(num_samples=3), "num_samples is a setting of sample"),
        (lambda model: model.stream(match="("), "not a regular expression"),
        (lambda model: model.score(5), "what is scored must be a text, not 5"),
        (lambda model: model.score(b"ba"), "what is scored must be a text, not b'ba'"),
        (lambda model: model.score("ba", label=5), "--label must be a text, not 5"),
        (lambda model: model.save(5), "a path must be a string or a Path, not 5"),
        (lambda _: charrnn.load(None), "a path must be a string or a Path, not None"),
        (lambda _: charrnn.train(5), "train needs a path, or several, not 5"),
        (lambda _: charrnn.train([5]), "a path must be a string or a Path, not 5"),
        (lambda _: charrnn.train("a.txt", run=5), "--run must be a text, not 5"),
        (lambda _: charrnn.train("a.txt", device=0), "--device must be a text, not 0"),
        (lambda _: charrnn.train("a.txt", minutes="1"), "--minutes must be a number, not '1'"),
        (lambda _: charrnn.train("a.txt", minutes=1e9), "--minutes must lie between 0.01 and 1,000,000"),
        (lambda _: charrnn.train("a.txt", threads=1.5), "--threads must be a whole number, not 1.5"),
        (lambda _: charrnn.train("a.txt", valid=5), "a path must be a string or a Path, not 5"),
        (lambda _: charrnn.train("a.txt", init_from=5), "a path must be a string or a Path, not 5"),
    ],
)
def test_an_argument_of_the_wrong_type_is_a_usage_error(folder, call_with, words):
    """In one line that names it, when the function is called."""
    model = charrnn.load("toy")
    with pytest.raises(UsageError, match=words):
        call_with(model)


def test_a_model_that_cannot_be_saved_is_an_error_in_one_line(folder):
    """It names the path."""
    model = charrnn.load("toy")
    with pytest.raises(charrnn.CharrnnError, match=r"^gone/m\.safetensors: No such file"):
        model.save("gone/m.safetensors")


def test_numbers_of_numpy_are_numbers(folder):
    """As loops over arrays give them."""
    model = charrnn.load("toy")
    plain = model.sample(num_samples=2, length=9, temperature=0.5, seed=3)
    assert plain == model.sample(
        num_samples=np.int64(2), length=np.int32(9), temperature=np.float32(0.5), seed=np.uint8(3)
    )


def test_a_path_object_names_the_model_to_start_from(folder):
    """As for every other path."""
    Path("poems.txt").write_text(make_text(400), encoding="utf-8")
    path = folder / "checkpoints" / "toy" / "model.safetensors"
    assert isinstance(charrnn.train("poems.txt", steps=1, init_from=path, threads=1), charrnn.Model)


def test_another_sample_does_not_disturb_a_stream(folder):
    """The training text that one reads stays there for the other."""
    Path("poems.txt").write_text(make_text(400), encoding="utf-8")
    model = charrnn.train("poems.txt", steps=1, hidden_size=8, threads=1)
    stream = model.stream(length=20, seed=1, no_copy=3)
    model.sample(length=5)
    assert "".join(stream) == model.sample(length=20, seed=1, no_copy=3)
