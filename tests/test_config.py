"""Settings: every range, every message, and what is recommended for any text."""

import dataclasses
import itertools
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.config import (
    CELLS,
    MIN_CHARS,
    CorpusConfig,
    ModelConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    flag,
    overlay,
)
from charrnn.errors import UsageError
from charrnn.hardware import _quota, available_cores
from charrnn.training.recipe import default_budget, estimate_memory, recommend

LEGAL = {
    ModelConfig: {"cell": "gru", "vocab_size": 5, "embedding_dim": 3, "hidden_size": 4, "num_layers": 2},
    TrainConfig: {"batch_size": 4, "seq_len": 8, "dropout": 0.5, "learning_rate": 1e-3},
    SourceConfig: {},
    CorpusConfig: {},
    SampleConfig: {},
}
RANGES = {
    (ModelConfig, "vocab_size"): (1, 0x110000),
    (ModelConfig, "embedding_dim"): (1, 65536),
    (ModelConfig, "hidden_size"): (1, 65536),
    (ModelConfig, "num_layers"): (1, 64),
    (ModelConfig, "reset_id"): (0, 0x110000),
    (TrainConfig, "batch_size"): (1, 65536),
    (TrainConfig, "seq_len"): (1, 65536),
    (TrainConfig, "dropout"): (0.0, 0.95),
    (TrainConfig, "learning_rate"): (1e-7, 10.0),
    (TrainConfig, "weight_decay"): (0.0, 10.0),
    (TrainConfig, "grad_clip"): (1e-6, 1e6),
    (TrainConfig, "patience"): (0, 10**6),
    (TrainConfig, "weight_drop"): (0.0, 0.95),
    (TrainConfig, "steps"): (1, 10**12),
    (TrainConfig, "seed"): (0, 2**63 - 1),
    (SourceConfig, "max_bytes"): (1, 10**18),
    (CorpusConfig, "min_count"): (1, 10**12),
    (CorpusConfig, "valid_fraction"): (1e-6, 0.5),
    (CorpusConfig, "test_fraction"): (0.0, 0.4),
    (SampleConfig, "temperature"): (0.0, 1e308),
    (SampleConfig, "length"): (-1, 10**15),
    (SampleConfig, "seed"): (0, 2**63 - 1),
    (SampleConfig, "lines"): (0, 10**15),
    (SampleConfig, "top_k"): (0, 0x110000),
    (SampleConfig, "top_p"): (0.0, 1.0),
    (SampleConfig, "min_p"): (0.0, 1.0),
    (SampleConfig, "no_repeat_ngram"): (0, 10**6),
    (SampleConfig, "num_samples"): (1, 10**9),
}
OPTIONAL = {(ModelConfig, "reset_id"), (SourceConfig, "max_bytes"), (TrainConfig, "steps"), (SampleConfig, "seed")}
CASES = [(kind, name, low, high) for (kind, name), (low, high) in RANGES.items()]
WHOLE = [(kind, name) for (kind, name), (low, _) in RANGES.items() if isinstance(low, int)]


def make(kind, **changes):
    """Legal settings of a kind, but for the changes."""
    return kind(**{**LEGAL[kind], **changes})


def test_every_range_is_in_the_table():
    """The table above holds each field that declares a range, so none goes untested."""
    declared = {
        (kind, field.name): field.metadata["range"]
        for kind in LEGAL
        for field in dataclasses.fields(kind)
        if "range" in field.metadata
    }
    assert declared == RANGES


def test_a_number_without_a_range_does_not_exist():
    """Every numeric setting is checked."""
    for kind in LEGAL:
        for field in dataclasses.fields(kind):
            assert ((kind, field.name) in RANGES) == ("int" in str(field.type) or "float" in str(field.type))


@pytest.mark.parametrize(("kind", "name", "low", "high"), CASES)
def test_the_ends_of_a_range_are_legal(kind, name, low, high):
    """PackedPair of them, and the value is kept as it is."""
    for value in (low, high):
        assert getattr(make(kind, **{name: value}), name) == value


@pytest.mark.parametrize(("kind", "name", "low", "high"), CASES)
def test_values_outside_a_range_are_refused(kind, name, low, high):
    """Just below, just above, far off, and what is no number at all; the message names the flag and the value."""
    if isinstance(low, int):
        beyond = [low - 1, high + 1]
    else:
        beyond = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    for value in [*beyond, -(10**18), -math.inf, math.inf, math.nan]:
        with pytest.raises(UsageError) as caught:
            make(kind, **{name: value})
        words = str(caught.value).split()
        assert words[0] == flag(name)
        assert words[-1] == str(value)


@pytest.mark.parametrize(("kind", "name"), WHOLE)
@pytest.mark.parametrize("value", [2.5, 2.0, "2"])
def test_a_count_is_a_whole_number(kind, name, value):
    """Half a step is refused, also where the field may be left open."""
    with pytest.raises(UsageError, match=f"^{flag(name)} must be a whole number"):
        make(kind, **{name: value})


@pytest.mark.parametrize(("kind", "name"), RANGES)
@pytest.mark.parametrize("value", [True, False])
def test_yes_and_no_are_no_numbers(kind, name, value):
    """Though Python counts with them; a file that says so is none of ours."""
    with pytest.raises(UsageError, match=f"^{flag(name)} must be a (whole )?number"):
        make(kind, **{name: value})


TEXTS = [
    *((TrainConfig, "init_from"), (SourceConfig, "glob"), (CorpusConfig, "encoding"), (CorpusConfig, "documents")),
    *((CorpusConfig, "known"), (CorpusConfig, "valid"), (SampleConfig, "prompt")),
]


def test_every_text_is_in_the_table():
    """The table above holds each field that is a text, so none goes untested."""
    declared = [(kind, field.name) for kind in LEGAL for field in dataclasses.fields(kind)]
    assert [pair for pair in declared if pair[0].__annotations__[pair[1]] in (str, str | None)] == TEXTS


@pytest.mark.parametrize(("kind", "name"), TEXTS)
@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], b"a", None], ids=repr)
def test_a_text_is_a_text(kind, name, value):
    """Nothing else is taken for one, but None where it means that there is none."""
    if value is None and kind.__annotations__[name] == str | None:
        assert getattr(make(kind, **{name: None}), name) is None
        return
    with pytest.raises(UsageError, match=f"^{flag(name)} must be a text"):
        make(kind, **{name: value})


@pytest.mark.parametrize("value", [0, 1, None, "no"], ids=repr)
def test_yes_or_no_is_one_of_them(value):
    """And nothing that may stand for it."""
    with pytest.raises(UsageError, match=r"^--bytes must be yes or no"):
        make(CorpusConfig, bytes=value)


@pytest.mark.parametrize(("kind", "name"), RANGES)
def test_only_some_settings_may_be_left_open(kind, name):
    """None is a value where it means something, and refused elsewhere."""
    if (kind, name) in OPTIONAL:
        assert getattr(make(kind, **{name: None}), name) is None
    else:
        with pytest.raises(UsageError, match=flag(name)):
            make(kind, **{name: None})


def test_a_range_is_told_in_the_message():
    """So that the next try is right."""
    with pytest.raises(UsageError) as caught:
        make(TrainConfig, dropout=1.0)
    assert str(caught.value) == "--dropout must lie between 0 and 0.95, not 1.0"


@pytest.mark.parametrize("cell", ["GRU", "", "transformer", None])
def test_there_are_three_cells(cell):
    """Any other is refused, and the message names them."""
    assert CELLS == ("rnn", "gru", "lstm")
    with pytest.raises(UsageError, match=r"--cell must be one of rnn, gru, lstm"):
        make(ModelConfig, cell=cell)


@pytest.mark.parametrize("kind", LEGAL)
def test_settings_do_not_change(kind):
    """They are frozen, and equal where their values are."""
    config = make(kind)
    assert config == make(kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, 1)


def test_a_field_becomes_a_flag():
    """Underscores become hyphens."""
    assert flag("seed") == "--seed"
    assert flag("num_layers") == "--num-layers"


# shapes


@pytest.mark.parametrize(("cell", "gates", "num_parameters"), [("rnn", 1, 116), ("gru", 3, 268), ("lstm", 4, 344)])
def test_shapes_are_those_worked_out_by_hand(cell, gates, num_parameters):
    """V = 5, E = 3, H = 4, L = 2: 15 + gates (12 + 16 + 8) + gates (16 + 16 + 8) + 25 parameters."""
    config = make(ModelConfig, cell=cell)
    rows = 4 * gates
    assert list(config.tensor_shapes().items()) == [
        ("embedding.weight", (5, 3)),
        ("layers.0.weight_ih_l0", (rows, 3)),
        ("layers.0.weight_hh_l0", (rows, 4)),
        ("layers.0.bias_ih_l0", (rows,)),
        ("layers.0.bias_hh_l0", (rows,)),
        ("layers.1.weight_ih_l0", (rows, 4)),
        ("layers.1.weight_hh_l0", (rows, 4)),
        ("layers.1.bias_ih_l0", (rows,)),
        ("layers.1.bias_hh_l0", (rows,)),
        ("head.weight", (5, 4)),
        ("head.bias", (5,)),
    ]
    assert config.num_parameters == num_parameters == 15 + gates * 36 + gates * 40 + 25


def test_only_the_lstm_has_two_states():
    """h, and for the LSTM also c."""
    assert [make(ModelConfig, cell=cell).num_states for cell in CELLS] == [1, 1, 2]


def test_memory_grows_with_everything():
    """The estimate holds the weights, and each size makes it larger."""
    model, training = make(ModelConfig), make(TrainConfig)
    least = estimate_memory(model, training)
    assert least > 4 * model.num_parameters
    for name in ("vocab_size", "embedding_dim", "hidden_size", "num_layers"):
        assert estimate_memory(dataclasses.replace(model, **{name: 50}), training) > least
    for name in ("batch_size", "seq_len"):
        assert estimate_memory(model, dataclasses.replace(training, **{name: 50})) > least


# overlay


def test_what_was_given_lies_over_the_rest():
    """By name; names of other settings are not this one's business; nothing given changes nothing."""
    model = make(ModelConfig)
    assert overlay(model, {}) == model
    assert overlay(model, {"seed": 5, "hidden_size": 9, "temperature": 1.0}) == make(ModelConfig, hidden_size=9)
    assert overlay(make(TrainConfig), {"steps": None, "dropout": 0.0}) == make(TrainConfig, steps=None, dropout=0.0)
    assert model == make(ModelConfig)


def test_what_was_given_is_checked():
    """An overlay can't make settings that couldn't be made."""
    with pytest.raises(UsageError, match="--valid-fraction"):
        overlay(CorpusConfig(), {"valid_fraction": 0.9})


# recommendations

SIZES = sorted(
    {18, 19, *(int(10 ** (power / 4)) for power in range(6, 37)), *(n + d for n in (32, 256, 512) for d in (-1, 0))}
)


@pytest.mark.parametrize("vocab_size", [1, 2, 65, 256, 1000, 1001, 5000, 65536, 100_000])
def test_every_text_has_a_legal_recommendation(vocab_size):
    """From the shortest that is trained on to a billion characters, for any time, on any device."""
    assert min(SIZES) == 18 == int(0.9 * MIN_CHARS)
    assert max(SIZES) == 10**9
    budgets = [(0.6, "cpu", 1), (300.0, "cpu", 2), (1e7, "cpu", 64), (300.0, "cuda", 2)]
    for num_chars, (seconds, device, threads) in itertools.product(SIZES, budgets):
        model, training, _ = recommend(num_chars, vocab_size, seconds=seconds, device=device, threads=threads)
        assert model.vocab_size == vocab_size
        assert model.cell in CELLS
        assert 1 <= training.batch_size <= num_chars
        assert 1 <= training.seq_len <= num_chars
        assert training.batch_size * training.seq_len <= max(num_chars, 32)
        assert training.steps is None


@given(
    num_chars=st.integers(18, 10**9),
    vocab_size=st.integers(1, 100_000),
    seconds=st.floats(0.6, 6e7),
    device=st.sampled_from(["cpu", "cuda", "cuda:1"]),
    threads=st.integers(1, 1024),
)
def test_a_recommendation_is_legal_and_a_function_of_what_it_is_given(num_chars, vocab_size, seconds, device, threads):
    """Asked again it is the same, which a run without options needs to be resumed."""
    first = recommend(num_chars, vocab_size, seconds=seconds, device=device, threads=threads)
    assert first == recommend(num_chars, vocab_size, seconds=seconds, device=device, threads=threads)
    assert first.training.batch_size <= num_chars
    settings = {**dataclasses.asdict(first.model), **dataclasses.asdict(first.training)}
    assert first.reasons.keys() <= settings.keys()


def test_larger_texts_get_no_smaller_networks():
    """More text carries more parameters, needs less dropout and fills larger steps."""
    found = [recommend(size, 65, seconds=300.0, device="cpu", threads=2) for size in SIZES]
    for (smaller, before, _), (larger, after, _) in itertools.pairwise(found):
        assert larger.hidden_size * larger.num_layers >= smaller.hidden_size * smaller.num_layers
        assert after.dropout <= before.dropout
        assert after.batch_size * after.seq_len >= before.batch_size * before.seq_len


@given(num_chars=st.integers(18, 499_999), batch_size=st.integers(1, 64), seq_len=st.integers(1, 100))
def test_a_short_text_is_read_thirty_times(num_chars, batch_size, seq_len):
    """Its budget is a number of steps: enough for thirty passes, and not a step more."""
    config = TrainConfig(batch_size=batch_size, seq_len=seq_len, dropout=0.0, learning_rate=1e-3)
    minutes, steps = default_budget(num_chars, config)
    assert minutes is None
    assert steps * batch_size * seq_len >= 30 * num_chars > (steps - 1) * batch_size * seq_len


@pytest.mark.parametrize("num_chars", [500_000, 1_003_854, 10**9, 10**15])
def test_a_long_text_gets_five_minutes(num_chars):
    """Unless somebody asks for more."""
    config = TrainConfig(batch_size=64, seq_len=64, dropout=0.0, learning_rate=1e-3)
    assert default_budget(num_chars, config) == (5.0, None)


@pytest.mark.parametrize("num_chars", [1000, 400_000, 2_000_000])
def test_without_a_budget_the_default_one_is_recommended_for(num_chars):
    """Whether that is a number of passes or of minutes."""
    model, training, reasons = recommend(num_chars, 65, seconds=None, device="cpu", threads=2)
    minutes, steps = default_budget(num_chars, training)
    seconds = minutes and 60 * minutes
    expected = recommend(num_chars, 65, seconds=seconds, steps=steps, device="cpu", threads=2)
    assert (model, dataclasses.replace(training, steps=steps), reasons) == expected


def test_what_fights_overfitting_follows_from_how_often_the_text_is_read():
    """More steps or more time over the same text: more is dropped; and the reason counts the passes."""
    by_steps = [recommend(100_000, 65, seconds=None, steps=n, device="cpu", threads=2) for n in (49, 490, 4900)]
    by_time = [recommend(100_000, 65, seconds=s, device="cpu", threads=2) for s in (2.0, 20.0, 200.0)]
    for few, more, many in (by_steps, by_time):
        assert few.training.dropout <= more.training.dropout <= many.training.dropout
        assert few.training.weight_drop < many.training.weight_drop
    for passes, choice in zip((1, 10, 100), by_steps, strict=True):
        assert f"about {passes} times" in choice.reasons["dropout"]


def test_cores_are_those_the_process_may_use():
    """At least one, and no more than the machine has."""
    assert 1 <= available_cores() <= os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_follow_the_affinity():
    """A process confined to one core, as in a container, counts one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_without_affinity_the_machines_cores_count(monkeypatch):
    """And one where not even those are known."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("4:cpu:/x\n0::/a\n", {"a/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/\n", {"cpu.max": "what\n"}, math.inf),
        ("0::/\n", {"cpu.max": "1 0\n"}, math.inf),
    ],
)
def test_a_containers_quota_is_seen(tmp_path, own, files, cores):
    """The least of its control group and of those around it; nonsense and absence grant all."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _quota(tmp_path) == cores


def test_without_control_groups_there_is_no_quota(tmp_path):
    """As on macOS and Windows."""
    assert _quota(tmp_path) == math.inf


def test_a_quota_of_less_than_a_core_leaves_one(monkeypatch):
    """And one of a core and a half needs two threads to be used up."""
    monkeypatch.setattr("charrnn.config._quota", lambda root: 0.3)
    assert available_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr("charrnn.config._quota", lambda root: 1.5)
    assert available_cores() == 2
