"""Wrong values for every key of a file's description: of another type, out of range, not a number, far too large."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from charrnn.config import CorpusConfig, ModelConfig, TrainConfig
from charrnn.data.batches import Cursor
from charrnn.training.state import ScalarState
from fault_rows.material import REMOVED, Good, nested

Place = tuple[str, ...]  # keys, from the outermost on
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, -0.5, math.nan, math.inf, -math.inf, 10**30, -(10**30), 10**400, 1e308),
    *("", "7", "a\nb\x1b[31m", "\ud800", "x" * 10_000),
    *([], [1], ["a"], [["a", 1]], {}, {"a": 1}, {"": None}, nested(50)),
)
_PARTS = {"model": ModelConfig, "training": TrainConfig, "corpus": CorpusConfig, "cursor": Cursor}  # of a state
_OBJECTS = ("model", "training", "corpus", "cursor", "text")  # which must be there, and be objects
_BUDGET = ("minutes", "seconds")  # numbers, or null
_TEXT = {"sha256": str, "vocab": str, "num_chars": int, "paths": list}


def wrong_in_model(good: Good) -> Iterator[tuple[Place, Any]]:
    """Places in a model's description that must make sense, each with values that don't."""
    for field in dataclasses.fields(ModelConfig):
        yield from ((("config", field.name), value) for value in ODD if not _fits(value, field))
        if field.default is dataclasses.MISSING:
            yield ("config", field.name), REMOVED
    yield ("config", "vocab_size"), good.meta["config"]["vocab_size"] + 1
    yield ("config", "hidden_size"), 65536
    yield ("config", "num_layers"), 64
    for value in ODD:
        yield ("config",), value
        yield ("vocab",), value
        if not isinstance(value, (dict, list)) and value != "":
            yield ("scores",), value
            yield ("provenance",), value
    yield from (((name,), REMOVED) for name in ("config", "vocab", "scores", "provenance"))


def odd_in_model(good: Good) -> Iterator[tuple[Place, Any]]:
    """Places in a model's description that only say where it comes from, with values that nobody wrote there."""
    for place in (*_places(good.meta["scores"], ("scores",)), *_places(good.meta["provenance"], ("provenance",))):
        yield from ((place, value) for value in (*ODD, REMOVED))


def wrong_in_state(good: Good) -> Iterator[tuple[Place, Any]]:
    """The same for a state: every key but those about the place it was computed in."""
    for field in dataclasses.fields(ScalarState):
        if field.name != "cursor":
            yield from (((field.name,), value) for value in ODD if not _fits(value, field))
        yield (field.name,), REMOVED
    for part, kind in _PARTS.items():
        for field in dataclasses.fields(kind):
            yield from (((part, field.name), value) for value in ODD if not _fits(value, field))
    yield from (((name,), value) for name in _BUDGET for value in ODD if not _fits_budget(value))
    for name, kind in _TEXT.items():
        yield from ((("text", name), value) for value in ODD if type(value) is not kind)
        yield ("text", name), REMOVED
    for name in (*_OBJECTS, "place"):
        yield (name,), REMOVED
        yield from (((name,), value) for value in ODD if not isinstance(value, (dict, list)) and value != "")


def senseless_in_state(good: Good) -> Iterator[tuple[Place, Any]]:
    """Values of the right type that can't be a run's: beyond the text, other sizes than the tensors have."""
    sizes = {"hidden_size": 65536, "embedding_dim": 65536, "num_layers": 64, "vocab_size": 0x110000}
    yield from ((("model", name), value) for name, value in sizes.items())
    yield ("model",), {**good.meta["model"], **sizes}
    yield ("model", "cell"), "rnn"
    yield ("training", "batch_size"), 65536
    yield ("cursor", "time"), 10**14
    yield ("schedule_start",), good.meta["num_steps"]
    yield ("schedule_start",), 10**15


def odd_in_state(good: Good) -> Iterator[tuple[Place, Any]]:
    """Places in a state's description that a run only tells of, or values that are at least possible."""
    for name in good.meta["place"]:
        yield from ((("place", name), value) for value in (*ODD, REMOVED))
    yield from ((("text", "paths"), value) for value in ODD if isinstance(value, list))
    for name in ("step", "valid_chars", "evaluated_step", "bad_evaluations", "best_step", "recent_chars", "num_events"):
        yield (name,), 10**15
    yield from (((name,), 1e300) for name in ("best_nats", "recent_nats"))
    yield ("num_steps",), 1
    yield ("cursor", "pass_index"), 10**15
    yield ("training", "seq_len"), 65536


def _places(value: Any, place: Place) -> Iterator[Place]:
    """All places in a JSON object, those in objects in it too."""
    for name in value if isinstance(value, Mapping) else ():
        yield (*place, name)
        yield from _places(value[name], (*place, name))


def _fits(value: Any, field: Any) -> bool:
    """Whether a setting could have this value, going by its type and its range."""
    kinds = get_args(field.type) or (field.type,)
    if get_origin(field.type) is Literal:
        return value in kinds if isinstance(value, str) else False
    if value is None or isinstance(value, (bool, str)):
        return (type(None) if value is None else type(value)) in kinds
    if isinstance(value, (int, float)) and (float in kinds or (int in kinds and isinstance(value, int))):
        low, high = field.metadata["range"]
        return bool(low <= value <= high)
    return False


def _fits_budget(value: Any) -> bool:
    """Whether a budget of minutes or seconds could have this value."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1e11)
