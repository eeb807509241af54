"""The engine of an exported page, in Node: it draws the texts that the sampler draws from the same numbers."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from charrnn.config import ModelConfig, SampleConfig
from charrnn.data.vocab import Vocab
from charrnn.events import bits
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import count_ngrams
from charrnn.pages.export import engine_source, pack, store_model
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END, LABEL_END, UNKNOWN, bytes_as_chars, label, name, valid_unicode
from tests import labelled
from tests.conftest import make_model_file, make_text

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node on the PATH")

# Reads {source, payload, jobs, fed} from stdin; prints what the worker posts for each job, and logits.
HARNESS = """
const vm = require("vm");
(async () => {
  let input = "";
  for await (const chunk of process.stdin) input += chunk;
  const { source, payload, jobs, fed } = JSON.parse(input);
  vm.runInThisContext(source);
  const posted = [];
  let heard;
  const receive = serve((message) => {
    posted.push(message);
    heard?.();
    if (message.type === "text") setImmediate(() => receive({ type: "seen", job: message.job }));
  });
  const wait = async (found) => {
    while (!posted.some(found)) await new Promise((resolve) => { heard = resolve; });
  };
  await receive({ type: "load", payload });
  const results = [];
  let number = 0;
  for (const messages of jobs) {
    number++;
    const first = posted.length;
    for (const message of messages) {
      const seen = posted.length;
      await receive({ ...message, job: number });
      const until = message.until ?? ["done", "refused"];
      if (until.length) await wait((one, place) => place >= seen && until.includes(one.type));
    }
    results.push(posted.slice(first));
  }
  const logits = [];
  if (fed.length) {
    const model = await unpackModel(payload), state = newState(model);
    for (const id of fed) {
      step(model, state, id);
      logits.push([...computeLogits(model, state)]);
    }
  }
  const plain = (key, value) => ArrayBuffer.isView(value) ? [...value] : value;
  process.stdout.write(JSON.stringify({ ready: posted[0], results, logits }, plain), () => process.exit(0));
})();
"""
DEFAULTS = {"length": 1000, "temperature": 0.8, "topK": 0, "topP": 1, "minP": 0, "noRepeat": 0, "seed": "5"}


def run_engine(stored, jobs=(), fed=()):
    """Give the engine a stored model and jobs, each a list of messages; return what it posts, and its logits."""
    facts = {"source": engine_source(), "payload": pack(stored), "jobs": list(jobs), "fed": list(map(int, fed))}
    done = subprocess.run([NODE, "-e", HARNESS], input=json.dumps(facts), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(prompt="", *, labels=(), **settings):
    """The message that asks for a text. labels: those to choose from."""
    return {"type": "write", "prompt": prompt, "labels": labels, "settings": {**DEFAULTS, **settings}}


def text_of(messages):
    """The text that the engine posted for a job."""
    return "".join(char for message in messages if message["type"] == "text" for char in message["chars"])


def sampler_settings(message):
    """The same settings for the sampler."""
    names = {"temperature": "temperature", "topK": "top_k", "topP": "top_p", "minP": "min_p", "length": "length"}
    settings = message["settings"]
    given = {ours: settings[theirs] for theirs, ours in names.items()}
    label = message["labels"][0] if len(message["labels"]) == 1 else None
    return SampleConfig(
        prompt=message["prompt"], label=label, no_repeat_ngram=settings["noRepeat"], seed=int(settings["seed"]), **given
    )


def assert_same_texts(file: ModelFile, precision, messages):
    """The engine writes what the sampler writes with the same rounded weights, equally likely."""
    stored = store_model(file, precision, max_ngram_bytes=10**9)
    assert stored.exact.ngram.keys() == file.ngram.keys()
    sampler = Sampler(stored.rounded, threads=1)
    for message, posted in zip(messages, run_engine(stored, [[one] for one in messages])["results"], strict=True):
        stream = sampler.stream(sampler_settings(message))
        text = valid_unicode("".join(stream))
        assert text_of(posted) == text
        done = posted[-1]
        assert (done["type"], done["label"]) == ("done", stream.opening.label)
        assert done["reason"] == ("end" if stream._stop.reached else "length")
        assert done["bitsPerChar"] == pytest.approx(bits(stream.nats / stream.num_drawn), abs=1e-4)


def make_model(cell, layers, chars, *, hidden=24, ngram_text=""):
    """A model with random weights, large enough that some characters are likely."""
    chars = "".join(sorted(set(chars)))
    config = ModelConfig(cell, vocab_size=len(chars), embedding_dim=10, hidden_size=hidden, num_layers=layers)
    if END in chars:
        config = replace(config, reset_id=chars.index(END))
    file = make_model_file(config, scale=2.5, chars=chars)
    if not ngram_text:
        return file
    ngram = count_ngrams(Vocab(chars).encode(ngram_text), 4, vocab_size=len(chars))
    return replace(file, ngram={**ngram, "ngram.weights": np.tile([0.7, 0.6], (4, 1))})


PRINTABLE = "\n" + "".join(map(chr, range(32, 90)))
EMOJI = "\n \U0001f600\U0001f469\u200d\U0001f680e\u0301éשלוםعربي中文字\ufe0f<>&/"
BYTES = "\n abc" + "".join(map(chr, range(0xDC80, 0xDCC0))) + "\udcc3\udce2\udcf0\udced"
GREEDY = write(temperature=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_every_network_writes_the_samplers_text(cell, layers):
    """Greedy and at temperature 0.8, with and without a prompt."""
    assert_same_texts(make_model(cell, layers, PRINTABLE), "float32", [write(), write("HELLO"), GREEDY])


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_rounded_weights_write_the_text_of_their_twin(precision):
    """The sampler on the rounded tensors is the twin."""
    text = make_text(3000)
    for file in (make_model("gru", 2, PRINTABLE), make_model("lstm", 1, text, ngram_text=text)):
        assert_same_texts(file, precision, [write(), GREEDY])


def test_filters_apply_in_the_samplers_order_with_its_tie_rules():
    """Each alone, all together, and on logits that are equal."""
    filters = [{"topK": 7}, {"topP": 0.6}, {"minP": 0.1}, {"noRepeat": 3}]
    filters += [{"topK": 30, "topP": 0.9, "minP": 0.01, "noRepeat": 4, "temperature": 1.3}]
    messages = [write(seed=str(seed), length=400, **one) for seed, one in enumerate(filters)]
    file = make_model("gru", 1, PRINTABLE)
    assert_same_texts(file, "float32", messages)
    zeros = {name: np.zeros_like(tensor) for name, tensor in file.tensors.items()}
    equal = replace(file, tensors=zeros)
    assert_same_texts(equal, "float32", [write(topK=5), write(topP=0.5), write(temperature=0, noRepeat=2, length=80)])


def test_every_script_and_a_large_vocabulary():
    """Emoji, combining characters, right-to-left letters; 5,000 characters."""
    assert_same_texts(make_model("gru", 1, EMOJI), "float32", [write("\U0001f600ש"), write(seed=str(2**63 - 1))])
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    assert_same_texts(make_model("gru", 1, many), "int8", [write(length=300)])


def test_documents_begin_and_end_as_the_samplers():
    """The end of a document ends the text and is no part of it."""
    file = make_model("gru", 1, END + PRINTABLE)
    messages = [write(seed=str(seed), length=-1) for seed in range(5)] + [write("AB", length=3)]
    assert_same_texts(file, "float32", messages)


def test_bytes_become_characters_and_invalid_ones_a_replacement():
    """At most three bytes follow the last one of a text, to end its character."""
    file = make_model("gru", 1, BYTES)
    messages = [write(length=length, temperature=1.5, seed=str(length)) for length in (1, 2, 3, 4, 5, 1000, 1001)]
    assert_same_texts(file, "float32", messages)
    uniform = replace(file, tensors={name: np.zeros_like(tensor) for name, tensor in file.tensors.items()})
    assert_same_texts(uniform, "float32", [write(length=length) for length in (9, 10, 11, 12, 3000)])


def test_ngrams_are_mixed_in():
    """In float32 with the exact shares."""
    text = make_text(3000)
    file = make_model("gru", 1, text, ngram_text=text)
    assert_same_texts(file, "float32", [write(), write("ba"), GREEDY])
    documents = END.join(["ab", "abc", "b", "cab"] * 50)
    assert_same_texts(make_model("rnn", 1, documents, ngram_text=documents), "float32", [write(length=-1), write("ab")])


@pytest.mark.parametrize("mixed", [False, True])
def test_labels_are_given_or_drawn_as_the_samplers(mixed):
    """With and without a prompt, whose rare characters count; the repeat guard begins after the label."""
    file = labelled.make_file(mixed=mixed)
    file.tensors["head.bias"][[file.vocab.id_of(symbol) for symbol in (UNKNOWN, LABEL_END)]] = 3.0
    labels = list(labelled.LABELS)
    messages = [write(prompt, labels=[label], length=30) for label in labels for prompt in ("", "cab")]
    messages += [write(labels=["ab"], length=20, noRepeat=2, temperature=0)]
    for seed in range(25):
        messages += [write(prompt, labels=labels, seed=str(seed), length=30) for prompt in ("", "ca?")]
    assert_same_texts(file, "float32", messages)
    assert_same_texts(file, "int8", messages[-12:])


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_labels_of_bytes_and_of_every_cell(cell):
    """A label with characters of several bytes; only one label."""
    chars = "".join(sorted(set("ab" + bytes_as_chars("é\U0001f600") + END + LABEL_END)))
    symbols = {"reset_id": chars.index(END), "label_id": chars.index(LABEL_END)}
    file = make_model_file(ModelConfig(cell, len(chars), 10, 16, 2, **symbols), scale=2.5, chars=chars)
    labels = ["é\U0001f600", "ab", "b"]
    file = replace(file, provenance={"text": {"labels": dict.fromkeys(labels, 1)}})
    messages = [write(prompt, labels=labels, seed=str(seed), length=20) for seed in range(9) for prompt in ("", "aé")]
    assert_same_texts(file, "float32", [*messages, write(labels=labels[:1], length=20)])
    only = replace(file, provenance={"text": {"labels": {"ab": 3}}})
    assert_same_texts(only, "float32", [write(labels=["ab"], length=20)])


def test_logits_are_the_networks_to_four_digits():
    """In float32, of each cell, after each of 300 characters."""
    ids = np.random.default_rng(0).integers(0, len(PRINTABLE), 300)
    for cell in ("rnn", "gru", "lstm"):
        file = make_model(cell, 2, PRINTABLE)
        network = CharRNN.from_arrays(file.config, file.tensors)
        with torch.no_grad():
            expected, _ = network(torch.from_numpy(ids)[:, None], network.initial_state(1))
        found = run_engine(store_model(file, "float32", max_ngram_bytes=0), fed=ids)["logits"]
        np.testing.assert_allclose(found, expected[:, 0].numpy(), atol=1e-4)


def test_a_text_continues_as_if_it_had_been_longer_from_the_start():
    """In several steps, also of bytes, where a step can end after a byte too many."""
    for chars in (PRINTABLE, BYTES):
        stored = store_model(make_model("gru", 1, chars), "float32", max_ngram_bytes=0)
        more = {"type": "continue", "length": 50}
        parts, whole = run_engine(stored, [[write(length=50), more, more], [write(length=150)]])["results"]
        assert text_of(whole).startswith(text_of(parts)[:140])
        assert parts[-1]["count"] >= 150
        if chars == PRINTABLE:
            assert text_of(parts) == text_of(whole)
            assert (parts[-1]["count"], parts[-1]["bitsPerChar"]) == (150, whole[-1]["bitsPerChar"])


def test_an_endless_text_stops_when_it_is_told_to():
    """A stop ends only its own job; a new text ends the one before."""
    stored = store_model(make_model("gru", 1, PRINTABLE), "float32", max_ngram_bytes=0)
    endless = {**write(length=-1), "until": ["text"]}
    stop, other = {"type": "stop", "until": ["done"]}, {**write(length=3), "until": ["text"]}
    stopped, replaced = run_engine(stored, [[endless, stop], [endless, other]])["results"]
    assert stopped[-1]["reason"] == "stopped"
    assert len(text_of(stopped)) == stopped[-1]["count"] > 0
    reasons = [message["reason"] for message in replaced if message["type"] == "done"]
    assert reasons == ["stopped", "length"]


def test_a_text_that_is_stopped_while_its_label_is_drawn_goes_on():
    """To the text that would have been written without the stop."""
    file = labelled.make_file(mixed=True)
    stored = store_model(file, "float32", max_ngram_bytes=10**9)
    whole = write("cab" * 3000, labels=list(labelled.LABELS), length=30, seed="2")
    stop, more = {"type": "stop"}, {"type": "continue", "length": 30}
    stopped, at_once = run_engine(stored, [[{**whole, "until": []}, stop, more], [whole]])["results"]
    assert (stopped[0]["type"], stopped[0]["label"], stopped[0]["count"]) == ("done", None, 0)
    assert text_of(stopped) == text_of(at_once)


def test_a_prompt_with_unknown_characters_is_refused_and_names_them():
    """Lone surrogates too, which the vocabulary uses for its symbols; a rare character stands for unknown ones."""
    jobs = [[write("AéB中é")], [write("\udc00")], [write("AB")]]
    stored = store_model(make_model("gru", 1, END + PRINTABLE), "float32", max_ngram_bytes=0)
    found = run_engine(stored, jobs)["results"]
    assert [(messages[-1]["type"], messages[-1].get("unknown")) for messages in found] == [
        ("refused", ["é", "中"]),
        ("refused", ["\udc00"]),
        ("done", None),
    ]
    rare = make_model("gru", 1, UNKNOWN + PRINTABLE)
    rare.tensors["head.bias"][rare.vocab.id_of(UNKNOWN)] = 100.0  # would always be drawn
    assert_same_texts(rare, "float32", [write("AéB中"), write()])
    unknown_byte = store_model(make_model("gru", 1, BYTES), "float32", max_ngram_bytes=0)
    assert run_engine(unknown_byte, [[write("a€Ā")]])["results"][0][-1]["unknown"] == ["Ā"]


def test_each_character_comes_with_its_surprisal_and_the_likeliest():
    """Before filters, at temperature 1; five places also for a vocabulary of three."""
    file = make_model("gru", 1, PRINTABLE)
    stored = store_model(file, "float32", max_ngram_bytes=0)
    messages = run_engine(stored, [[write(length=200, topK=3, temperature=0.5)]])["results"][0][:-1]
    ids, found, top, probabilities = (
        np.array([value for message in messages for value in message[key]])
        for key in ("ids", "bits", "top", "probabilities")
    )
    fed = np.append(file.vocab.id_of("\n"), ids[:-1])
    logits = np.array(run_engine(stored, fed=fed)["logits"])
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(found, -np.log2(shares[np.arange(200), ids]), atol=1e-4)
    np.testing.assert_array_equal(top.reshape(-1, 5), np.argsort(-shares, 1, kind="stable")[:, :5])
    np.testing.assert_allclose(probabilities.reshape(-1, 5), -np.sort(-shares, 1)[:, :5], atol=1e-5)
    small = run_engine(store_model(make_model("rnn", 1, "abc"), "int8", max_ngram_bytes=0), [[write(length=4)]])
    assert len(small["results"][0][0]["top"]) == 20
    assert small["results"][0][0]["probabilities"][3:5] == [0, 0]
    assert small["ready"]["labels"] == [[label(char), name(char)] for char in "abc"]


def test_the_engine_draws_no_faster_than_the_page_shows():
    """Two messages that nobody has seen are the most, also after a stop and a continue at once."""
    stored = store_model(make_model("rnn", 1, "abc"), "int8", max_ngram_bytes=0)
    source = """const cut = serve; serve = (post) => {
      const receive = cut(post);
      return async (message) => {
        if (message.type !== "stop" || message.until) return message.type === "seen" ? null : receive(message);
        for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate);
        await receive(message);
      };
    };"""
    endless, at_once = {**write(length=-1), "until": ["text"]}, {"until": []}
    jobs = [
        [endless, {"type": "stop"}],
        [endless | at_once, {"type": "stop"} | at_once, {"type": "continue", "length": -1} | at_once, {"type": "stop"}],
    ]
    facts = {"source": engine_source() + source, "payload": pack(stored), "jobs": jobs, "fed": []}
    done = subprocess.run([NODE, "-e", HARNESS], input=json.dumps(facts), capture_output=True, text=True, check=True)
    for messages, stops in zip(json.loads(done.stdout)["results"], (1, 2), strict=True):
        shown = [message for message in messages if message["type"] == "text"]
        assert len(shown) == 2
        assert all(len(message["chars"]) <= 1000 for message in shown)
        assert [message["reason"] for message in messages if message["type"] == "done"] == ["stopped"] * stops


def test_a_damaged_payload_fails_with_a_message():
    """A page cut in transit."""
    stored = store_model(make_model("rnn", 1, "abc"), "int8", max_ngram_bytes=0)
    source = "const cut = serve; serve = (post) => { const receive = cut(post); return (message) => receive("
    source += "{ ...message, payload: message.payload?.slice(0, 400) }); };"
    facts = {"source": engine_source() + source, "payload": pack(stored), "jobs": [], "fed": []}
    done = subprocess.run([NODE, "-e", HARNESS], input=json.dumps(facts), capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["ready"]["type"] == "failed"
