"""Settings: every range, every message and every shape."""

import dataclasses
import math

import pytest

from charrnn.config import (
    CELLS,
    CorpusConfig,
    ListConfig,
    ModelConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    flag,
    overlay,
)
from charrnn.errors import UsageError

VALID = {
    ModelConfig: {"cell": "gru", "vocab_size": 5, "embedding_dim": 3, "hidden_size": 4, "num_layers": 2},
    TrainConfig: {"batch_size": 4, "seq_len": 8, "dropout": 0.5, "learning_rate": 1e-3},
    SourceConfig: {},
    CorpusConfig: {},
    SampleConfig: {},
    ListConfig: {},
}
RANGES = {
    (ModelConfig, "vocab_size"): (1, 0x110000),
    (ModelConfig, "embedding_dim"): (1, 65536),
    (ModelConfig, "hidden_size"): (1, 65536),
    (ModelConfig, "num_layers"): (1, 64),
    (ModelConfig, "reset_id"): (0, 0x110000),
    (ModelConfig, "label_id"): (0, 0x110000),
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
    (SampleConfig, "min_length"): (0, 10**15),
    (SampleConfig, "no_copy"): (0, 10**6),
    (SampleConfig, "resample"): (1, 10**4),
    (SampleConfig, "num_samples"): (1, 10**9),
    (ListConfig, "new_run"): (2, 10**6),
    (ListConfig, "max_draws"): (1, 10**15),
    (ListConfig, "best"): (1, 10**9),
}
OPTIONAL = {
    (ModelConfig, "reset_id"),
    (ModelConfig, "label_id"),
    (SourceConfig, "max_bytes"),
    (TrainConfig, "steps"),
    (SampleConfig, "seed"),
    (SampleConfig, "resample"),
    (ListConfig, "max_draws"),
    (ListConfig, "best"),
}
CASES = [(kind, name, low, high) for (kind, name), (low, high) in RANGES.items()]
WHOLE = [(kind, name) for (kind, name), (low, _) in RANGES.items() if isinstance(low, int)]


def make(kind, **changes):
    """Create valid settings of a kind, with these changes."""
    return kind(**{**VALID[kind], **changes})


def test_every_range_is_tested():
    """The table above contains each field that declares a range."""
    declared = {
        (kind, field.name): field.metadata["range"]
        for kind in VALID
        for field in dataclasses.fields(kind)
        if "range" in field.metadata
    }
    assert declared == RANGES


def test_every_number_has_a_range():
    """No numeric setting is unchecked."""
    for kind in VALID:
        for field in dataclasses.fields(kind):
            assert ((kind, field.name) in RANGES) == ("int" in str(field.type) or "float" in str(field.type))


@pytest.mark.parametrize(("kind", "name", "low", "high"), CASES)
def test_the_bounds_of_a_range_are_valid(kind, name, low, high):
    """Both of them, and the value is not changed."""
    needed = {"forbid": "x"} if name == "resample" else {}  # what it has no effect without
    for value in (low, high):
        assert getattr(make(kind, **needed, **{name: value}), name) == value


@pytest.mark.parametrize(("kind", "name", "low", "high"), CASES)
def test_values_outside_a_range_are_refused(kind, name, low, high):
    """Just below, just above, far off, infinite and nan; the message names the flag and the value."""
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
def test_counts_are_whole_numbers(kind, name, value):
    """Fractions are refused, even if the setting may be None."""
    with pytest.raises(UsageError, match=f"^{flag(name)} must be a whole number"):
        make(kind, **{name: value})


@pytest.mark.parametrize(("kind", "name"), RANGES)
@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_not_numbers(kind, name, value):
    """Although Python treats them as integers."""
    with pytest.raises(UsageError, match=f"^{flag(name)} must be a (whole )?number"):
        make(kind, **{name: value})


TEXTS = [
    (TrainConfig, "init_from"),
    (SourceConfig, "glob"),
    (CorpusConfig, "encoding"),
    (CorpusConfig, "documents"),
    (CorpusConfig, "column"),
    (CorpusConfig, "label"),
    (CorpusConfig, "label_from"),
    (CorpusConfig, "format"),
    (CorpusConfig, "known"),
    (CorpusConfig, "valid"),
    (SampleConfig, "prompt"),
    (SampleConfig, "match"),
    (SampleConfig, "allow"),
    (SampleConfig, "forbid"),
    (SampleConfig, "label"),
]


def test_every_text_is_tested():
    """The table above contains each field that is a text."""
    declared = [(kind, field.name) for kind in VALID for field in dataclasses.fields(kind)]
    assert [pair for pair in declared if pair[0].__annotations__[pair[1]] in (str, str | None)] == TEXTS


@pytest.mark.parametrize(("kind", "name"), TEXTS)
@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], b"a", None], ids=repr)
def test_texts_are_strings(kind, name, value):
    """Other types are refused; None is accepted if the setting may be None."""
    if value is None and kind.__annotations__[name] == str | None:
        assert getattr(make(kind, **{name: None}), name) is None
        return
    with pytest.raises(UsageError, match=f"^{flag(name)} must be a text"):
        make(kind, **{name: value})


@pytest.mark.parametrize("value", [0, 1, None, "no"], ids=repr)
def test_switches_are_booleans(value):
    """Other types are refused, whatever they might stand for."""
    with pytest.raises(UsageError, match=r"^--bytes must be true or false"):
        make(CorpusConfig, bytes=value)


@pytest.mark.parametrize(("kind", "name"), RANGES)
def test_only_optional_settings_may_be_none(kind, name):
    """None is refused for the others."""
    if (kind, name) in OPTIONAL:
        assert getattr(make(kind, **{name: None}), name) is None
    else:
        with pytest.raises(UsageError, match=flag(name)):
            make(kind, **{name: None})


def test_the_message_contains_the_range():
    """The next attempt can then be correct."""
    with pytest.raises(UsageError) as caught:
        make(TrainConfig, dropout=1.0)
    assert str(caught.value) == "--dropout must lie between 0 and 0.95, not 1.0"
    with pytest.raises(UsageError, match="--num-samples must lie between 1 and 1,000,000,000, not 0"):
        SampleConfig(num_samples=0)


@pytest.mark.parametrize("cell", ["GRU", "", "transformer", None])
def test_there_are_three_cells(cell):
    """Any other is refused, and the message lists them."""
    assert CELLS == ("rnn", "gru", "lstm")
    with pytest.raises(UsageError, match=r"--cell must be one of rnn, gru, lstm"):
        make(ModelConfig, cell=cell)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (CorpusConfig, {"errors": "ignore"}, "--errors must be strict or replace, not 'ignore'"),
        (SampleConfig, {"unknown": "drop"}, "--unknown must be error or skip, not 'drop'"),
        (SampleConfig, {"stop": "a"}, "--stop must be a list of texts, not 'a'"),
        (SampleConfig, {"stop": (1,)}, r"--stop must be a list of texts, not \[1\]"),
        (SampleConfig, {"stop": ("a", "")}, "--stop '' would end every sample before its first character"),
    ],
)
def test_choices_and_lists_are_checked(kind, changes, message):
    """The message names the flag."""
    with pytest.raises(UsageError, match=f"^{message}"):
        make(kind, **changes)


@pytest.mark.parametrize("kind", VALID)
def test_settings_are_immutable(kind):
    """They are equal if their values are."""
    config = make(kind)
    assert config == make(kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, 1)


def test_flag_replaces_underscores():
    """By hyphens."""
    assert flag("seed") == "--seed"
    assert flag("num_layers") == "--num-layers"


# shapes


@pytest.mark.parametrize(("cell", "gates", "num_parameters"), [("rnn", 1, 116), ("gru", 3, 268), ("lstm", 4, 344)])
def test_shapes_match_hand_computed_ones(cell, gates, num_parameters):
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


# overlay


def test_overlay_replaces_the_given_fields():
    """By name; names of other settings are ignored; without given values nothing changes."""
    model = make(ModelConfig)
    assert overlay(model, {}) == model
    assert overlay(model, {"seed": 5, "hidden_size": 9, "temperature": 1.0}) == make(ModelConfig, hidden_size=9)
    assert overlay(make(TrainConfig), {"steps": None, "dropout": 0.0}) == make(TrainConfig, steps=None, dropout=0.0)
    assert model == make(ModelConfig)


def test_overlay_checks_values():
    """It can't create settings that would be refused otherwise."""
    with pytest.raises(UsageError, match="--valid-fraction"):
        overlay(CorpusConfig(), {"valid_fraction": 0.9})


@pytest.mark.parametrize(
    "kind", ["line", "Lines", "LINES", "liens", "blank_lines", "blanklines", "Blank-Lines", "blank-line"]
)
def test_a_misspelt_kind_of_documents_is_refused(kind):
    """The message names the keyword, and how to use the word itself as a separator."""
    keyword = "blank-lines" if "blank" in kind.lower() else "lines"
    with pytest.raises(UsageError) as caught:
        CorpusConfig(documents=kind)
    assert str(caught.value).startswith(f"--documents {kind}: did you mean {keyword}? ")
    assert str(caught.value).endswith(f"write '\\{kind}'")
    CorpusConfig(documents="\\" + kind)


@pytest.mark.parametrize(
    "kind", ["lines", "blank-lines", "|", "\n", r"\n", "end", "---", "<|endoftext|>", "====", "li"]
)
def test_other_kinds_of_documents_are_accepted(kind):
    """Keywords and any text that doesn't resemble one."""
    assert CorpusConfig(documents=kind).documents == kind


@pytest.mark.parametrize("kind", ["", "lines", "blank-lines"])
def test_only_a_separator_can_be_kept(kind):
    """Lines have none of their own."""
    with pytest.raises(UsageError, match="--keep-separator needs"):
        CorpusConfig(documents=kind, keep_separator=True)
    assert CorpusConfig(documents=">", keep_separator=True).keep_separator
