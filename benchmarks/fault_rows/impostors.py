"""Hostile files: no file at all, another program's, a lie about sizes, JSON that breaks readers, wrong values."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import operator
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np

from fault_rows.internals import (
    CorpusConfig,
    Cursor,
    ModelConfig,
    ScalarState,
    TrainConfig,
    read_tensors,
    write_tensors,
)

HARM = "executed"  # the name of a folder that an executed pickle makes beside its file
Named = Iterator[tuple[str, bytes | Callable[[Path], Any]]]  # what is wrong, and the file's bytes or what makes it
_REMOVED = object()  # as a value: the key is left out
_ZEROS = "0" * 64
_MARK = rb"\"file_sha256\": \""
_BIG = 5_000_000  # elements of a list; four times as many bytes of a string
_DEEP = 100_000
_ROOM = 3_900_000  # bytes of what a small file's header may be
_HOLE = 100 * 10**9  # bytes of a file that takes no room on the disk


class Case(NamedTuple):
    """A hostile file. content: its bytes, or what makes it. may_load: it only says odd things."""

    name: str
    kind: str
    content: bytes | Callable[[Path], Any]
    may_load: bool

    def put(self, path: Path) -> None:
        """Make it."""
        path.write_bytes(self.content) if isinstance(self.content, bytes) else self.content(path)


class Good:
    """A good file of a kind, model or state; header: its text with zeros for the digest."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind, self.data = kind, path.read_bytes()
        self.tensors, meta = read_tensors(path, kind=kind)
        end = 8 + int.from_bytes(self.data[:8], "little")
        self.header, self.body = self.data[8:end].decode().replace(meta["file_sha256"], _ZEROS), self.data[end:]
        self.meta = {key: value for key, value in meta.items() if key not in ("format", "kind", "file_sha256")}
        assert self.sealed(self.header) == self.data, "docs/formats.md says something else about checksums"

    def sealed(self, header: str | bytes | dict[str, Any], body: bytes | None = None) -> bytes:
        """The bytes of a file with another header; its 64 zeros are replaced by the checksum."""
        text = json.dumps(header, separators=(",", ":")) if isinstance(header, dict) else header
        raw = text.encode() if isinstance(text, str) else text
        data = len(raw).to_bytes(8, "little") + raw + (self.body if body is None else body)
        start = data.find(_MARK) + len(_MARK)
        if data[start : start + 64] != _ZEROS.encode():
            return data
        return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + 64 :]

    def writer(self, *, tensors: Any = None, meta: Any = None) -> Callable[[Path], None]:
        """A function that writes the file as charrnn does, with other tensors or another description."""
        tensors, meta = (self.tensors if tensors is None else tensors), (self.meta if meta is None else meta)
        return lambda path: write_tensors(path, tensors, kind=self.kind, meta=dict(meta))


def cases(model: Good, state: Good) -> list[list[Case]]:
    """All hostile files, by families."""
    refused = (no_files, foreign, sizes, deep_and_wide, padded, doubled, misplaced, wrong_tensors, wrong_values)
    families = [*((family, False) for family in refused), (harmless, True), (odd_values, True)]
    return [
        [Case(f"{good.kind}: {name}", good.kind, put, may_load) for name, put in family(good)]
        for family, may_load in families
        for good in (model, state)
    ]


def no_files(good: Good) -> Named:
    """Things that aren't regular files, or never end."""

    def put_socket(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):  # a socket's name must be short
            server.bind(path.name)

    def put_hole(data: bytes, path: Path) -> None:
        path.write_bytes(data)
        os.truncate(path, _HOLE)

    header = json.loads(good.header)
    header["head.bias"] = {"dtype": "F32", "shape": [_HOLE // 4 - 4096], "data_offsets": [0, _HOLE - (1 << 14)]}
    yield from {"a folder": Path.mkdir, "a FIFO": os.mkfifo, "a socket": put_socket}.items()
    yield "a link to itself", lambda path: path.symlink_to(path.name)
    for target in ("nothing", "/dev/zero", "/proc/self/mem"):
        yield f"a link to {target}", lambda path, target=target: path.symlink_to(target)
    holes = {"nothing in it": b"", "a hole": bytes(8), "a hole behind it": good.data}
    for name, data in {**holes, "a hole that its tensors are in": good.sealed(header)}.items():
        yield name, functools.partial(put_hole, data)


class _Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path.with_name(HARM)),)


def foreign(good: Good) -> Named:
    """Files of other programs, and pickles in disguise."""

    def put_pickle(before: bytes, path: Path) -> None:
        path.write_bytes(before + pickle.dumps(_Harm(path)))

    def put_as_description(path: Path) -> None:
        harm = pickle.dumps(_Harm(path), protocol=0).decode("latin-1")
        path.write_bytes(good.sealed({**json.loads(good.header), "__metadata__": {"charrnn": harm}}))

    befores = {"": b"", " behind a header": good.data[: -len(good.body)], " behind it": good.data}
    for name, before in {**befores, " in a zip": b"PK\3\4" + bytes(26)}.items():
        yield f"a pickle{name}", functools.partial(put_pickle, before)
    yield "a pickle as the description", put_as_description
    yield "a text", b"To be, or not to be.\n" * 500
    yield "random bytes", np.random.default_rng(0).bytes(5000)


def sizes(good: Good) -> Named:
    """Headers whose length is a lie."""
    length = len(good.data)
    for size in (0, 1, 7, length - 8, length, length + 1, 1 << 22, 100_000_000, 1 << 31, 1 << 63, (1 << 64) - 1):
        yield f"a header of {size} bytes", size.to_bytes(8, "little") + good.data[8:]


def _in_json(good: Good, **texts: Callable[[], str]) -> Named:
    """JSON texts as the header, and in the description."""
    old = json.loads(good.header)["__metadata__"]["charrnn"]

    def put(text: Callable[[], str], in_description: bool, path: Path) -> None:
        new = json.dumps(f'{old[:-1]}, "note": {text()}}}')
        path.write_bytes(good.sealed(good.header.replace(json.dumps(old), new) if in_description else text()))

    for name, text in texts.items():
        yield f"{name} in the header", functools.partial(put, text, False)
        yield f"{name} in the description", functools.partial(put, text, True)


def deep_and_wide(good: Good) -> Named:
    """JSON that is deeper, longer or wider than a reader can bear."""
    yield from _in_json(
        good,
        deep=lambda: "[" * _DEEP + "]" * _DEEP,
        deep_and_open=lambda: "[" * _DEEP,
        deep_objects=lambda: '{"a":' * _DEEP + "1" + "}" * _DEEP,
        many_elements=lambda: "[" + "1," * _BIG + "1]",
        fewer_elements=lambda: "[" + "1," * (_ROOM // 2) + "1]",
        empty_lists=lambda: "[" + "[]," * (_ROOM // 4) + "[]]",
        a_long_number=lambda: "9" * 1_000_000,
        a_long_string=lambda: '"' + "x" * 4 * _BIG + '"',
    )
    wide = rf"\"note\": \"{'x' * _ROOM}" + "\U0001f600" + r"\", \"kind\""  # what isn't ASCII is not escaped
    yield "4 MB and a wide character", good.sealed(good.header.replace(r"\"kind\"", wide))


def harmless(good: Good) -> Named:
    """What may be there, although charrnn doesn't write it."""
    yield from _in_json(good, string=lambda: f'"{"x" * _ROOM}"', escapes=lambda: '"' + r"\u00e9" * (_ROOM // 7) + '"')

    def put_as_tensors(path: Path) -> None:  # four bytes of anything are a number too
        path.write_bytes(good.sealed(good.header, pickle.dumps(_Harm(path)).ljust(len(good.body), b".")))

    yield "a pickle as the first tensor", put_as_tensors


def padded(good: Good) -> Named:
    """Long descriptions in files so large that they may be."""
    tensors = {**good.tensors, "padding": np.zeros(24_000_000, np.float32)}  # of which a header may be a quarter
    points = "".join(map(chr, (*range(0xD800), *range(0xDC00, 0x110000))))
    for name, more in {
        "20 MB of a string": {"note": "x" * 4 * _BIG},
        "5 million elements": {"note": [1] * _BIG},
        "a vocabulary of all there is": {"vocab": points},
        "a vocabulary of 20 MB": {"vocab": "ab" * 2 * _BIG},
    }.items():
        yield f"{name}, padded", good.writer(tensors=tensors, meta={**good.meta, **more})


def doubled(good: Good) -> Named:
    """Keys that stand twice, other ways to write the same, checksums in the wrong place."""
    first, last = min(good.tensors), max(good.tensors)
    mark, entry = r'"\"file_sha256\": \"' + _ZEROS + '"', '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    for name, old, new in (
        ("a tensor twice", f'"{first}":', f'"{first}":{entry},"{first}":'),
        ("the description twice", '"charrnn":', '"charrnn":"{}","charrnn":'),
        ("metadata twice", '"__metadata__":', '"__metadata__":{},"__metadata__":'),
        ("the kind twice", r"\"kind\":", r"\"kind\": \"other\", \"kind\":"),
        ("the format twice", r"\"format\":", r"\"format\": 2, \"format\":"),
        ("an escaped name", f'"{last}":', f'"\\u{ord(last[0]):04x}{last[1:]}":'),
        ("a space", f'"{last}":', f'"{last}": '),
        ("another checksum first", '{"__metadata__"', f'{{{mark}:{entry},"__metadata__"'),
        ("another checksum last", f'"{last}":', f'{mark}:{entry},"{last}":'),
        ("format 2", r"\"format\": 1", r"\"format\": 2"),
        ("format 1.0", r"\"format\": 1", r"\"format\": 1.0"),
        ("format true", r"\"format\": 1", r"\"format\": true"),
        ("another kind", rf"\"kind\": \"{good.kind}\"", r"\"kind\": \"other\""),
        ("a checksum in capitals", _ZEROS, "A" * 64),
        ("no checksum", r"\"file_sha256\"", r"\"file_sha257\""),
    ):
        assert good.header.count(old) == 1, old
        yield name, good.sealed(good.header.replace(old, new))
    for code in ("utf-16", "utf-32", "utf-8-sig"):
        yield f"a header in {code}", good.sealed(good.header.encode(code))


def misplaced(good: Good) -> Named:
    """Tensors that overlap, lie outside, have a size that isn't theirs, or no type."""
    header, size = json.loads(good.header), len(good.body)
    first, second, *_, last = sorted(good.tensors, key=lambda name: header[name]["data_offsets"])
    without = {name: {key: value for key, value in header.items() if key != name} for name in (first, second, last)}
    changes = {
        "overlapping": {**header, second: header[first]},
        "one missing": without[second],
        "the last missing": without[last],
        "all missing": {"__metadata__": header["__metadata__"]},
        "an empty one more": {**header, "more": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}},
        "no entry": {**header, first: None},
        "no name": {**without[first], "": header[first]},
    }
    ends = (size + 4, 0, 1 << 62, 1 << 80)
    places = [[0, end] for end in ends] + [[size, size + 4], [4, 0], [-4, 0], ["0", "4"], [True, True], [0.0, 4.0]]
    odd = {
        "data_offsets": (*places, None, [], [0], {"0": 4}, [_nested(50)]),
        "shape": ([1 << 62], [1 << 32] * 2, [-1], [0], [1.5], ["1"], None, [True], [1] * 100, [1] * 10_000),
        "dtype": ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "f32", "", None, 5, ["F32"]),
    }
    for key, values in odd.items():
        for value in values:
            changes[f"with {key} {str(value)[:40]}"] = {**header, last: {**header[last], key: value}}
    for name, change in changes.items():
        yield f"a tensor {name}", good.sealed(change)


def wrong_tensors(good: Good) -> Named:
    """One tensor that doesn't fit, or isn't there."""
    for name, tensor in good.tensors.items():
        others = {other: good.tensors[other] for other in good.tensors if other != name}
        yield f"{name} missing", good.writer(tensors=others)
        yield f"{name} renamed", good.writer(tensors={**others, f"{name}x": tensor})
        changed = {
            "transposed": tensor.T.copy(),
            "in one more dimension": tensor[None],
            "cut": tensor[:-1].copy(),
            "empty": tensor[:0].copy(),
            "doubled": np.concatenate([tensor, tensor]),
            "in float64": tensor.astype(np.float64),
            "in float16": tensor.astype(np.float16),
            "as integers": tensor.view(np.int32),
            "as bytes": tensor.view(np.uint8),
        }
        for number in (np.nan, np.inf, -np.inf):
            changed[f"with {number}"] = tensor.copy()
            changed[f"with {number}"].flat[-1] = number
        for how, odd in changed.items():
            if how.startswith("with") or (odd.shape, odd.dtype) != (tensor.shape, tensor.dtype):
                yield f"{name} {how}", good.writer(tensors={**others, name: odd})


def _nested(depth: int) -> Any:
    """A list in a list in a list."""
    return [_nested(depth - 1)] if depth else 1


_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, -0.5, math.nan, math.inf, -math.inf, 10**30, -(10**30), 10**400, 1e308),
    *("", "7", "a\nb\x1b[31m", "\ud800", "x" * 10_000),
    *([], [1], ["a"], [["a", 1]], {}, {"a": 1}, {"": None}, _nested(50), _REMOVED),
)
_NO_OBJECT = [value for value in _ODD if not isinstance(value, (dict, list)) and value != ""]
_NO_BUDGET = [v for v in _ODD[:-1] if v is not None and (type(v) not in (int, float) or not 0 <= v <= 1e11)]
_PARTS = {"": ScalarState, "model.": ModelConfig, "training.": TrainConfig, "corpus.": CorpusConfig, "cursor.": Cursor}
_TEXT = {"sha256": str, "vocab": str, "num_chars": int, "paths": list}
_TOO_LARGE = {"hidden_size": 65536, "embedding_dim": 65536, "num_layers": 64, "vocab_size": 0x110000}
_COUNTS = ("step", "valid_chars", "evaluated_step", "bad_evaluations", "best_step", "recent_chars", "num_events")


def wrong_values(good: Good) -> Named:
    """One value in the description that can't be right: of another type, out of range, or against the tensors."""
    meta = good.meta
    for part, kind in ({"config.": ModelConfig} if good.kind == "model" else _PARTS).items():
        for field in dataclasses.fields(kind):
            required = kind is ScalarState or (part == "config." and field.default is dataclasses.MISSING)
            wrong = [value for value in _ODD if (required if value is _REMOVED else not _fits(value, field))]
            yield from _with(good, part + field.name, _NO_OBJECT if field.name == "cursor" else wrong)
    if good.kind == "model":
        more = {"config": _ODD, "vocab": _ODD, "scores": _NO_OBJECT, "provenance": _NO_OBJECT}
        more |= {"config.vocab_size": [meta["config"]["vocab_size"] + 1]}
        more |= {"config.hidden_size": [65536], "config.num_layers": [64]}
    else:
        more = dict.fromkeys(("model", "training", "corpus", "text", "place"), _NO_OBJECT)
        more |= {f"text.{name}": [value for value in _ODD if type(value) is not kind] for name, kind in _TEXT.items()}
        more |= {"minutes": _NO_BUDGET, "seconds": _NO_BUDGET}
        more |= {f"model.{name}": [value] for name, value in _TOO_LARGE.items()}
        more |= {"model": [*_NO_OBJECT, {**meta["model"], **_TOO_LARGE}], "model.cell": ["rnn"]}
        more |= {"training.batch_size": [65536], "cursor.time": [10**14], "schedule_start": [meta["num_steps"], 10**15]}
    for place, values in more.items():
        yield from _with(good, place, values)


def odd_values(good: Good) -> Named:
    """One value in the description that nobody relies on, or that is at least possible."""
    tolerant = ("scores", "provenance") if good.kind == "model" else ("place",)
    values = {place: _ODD for part in tolerant for place in _places(good.meta[part], f"{part}.")}
    if good.kind == "state":
        values |= {**{name: [10**15] for name in _COUNTS}, "best_nats": [1e300], "recent_nats": [1e300]}
        values |= {"text.paths": [value for value in _ODD if isinstance(value, list)], "num_steps": [1]}
        values |= {"cursor.pass_index": [10**15], "training.seq_len": [65536]}
    for place, several in values.items():
        yield from _with(good, place, several)


def _with(good: Good, place: str, values: Sequence[Any]) -> Named:
    """The description with each of the values in one place."""
    *outer, last = place.split(".")

    def put(value: Any, path: Path) -> None:
        meta = copy.deepcopy(good.meta)
        inner = functools.reduce(operator.getitem, outer, meta)
        inner[last] = value
        if value is _REMOVED:
            del inner[last]
        good.writer(meta=meta)(path)

    for number, value in enumerate(values):
        shown = (
            "removed" if value is _REMOVED else "a long number" if value in (10**400, -(10**400)) else repr(value)[:40]
        )
        yield f"{place}, {number}: {shown}", functools.partial(put, value)


def _places(value: Any, before: str) -> Iterator[str]:
    """All places in a JSON object, those in objects in it too."""
    for name in value if isinstance(value, Mapping) else ():
        yield before + name
        yield from _places(value[name], f"{before}{name}.")


def _fits(value: Any, field: Any) -> bool:
    """Whether a setting could have this value, going by its type and its range."""
    kinds = get_args(field.type) or (field.type,)
    if get_origin(field.type) is Literal:
        return isinstance(value, str) and value in kinds
    if value is None or isinstance(value, (bool, str)):
        return type(value) in kinds
    if isinstance(value, (int, float)) and (float in kinds or (int in kinds and isinstance(value, int))):
        low, high = field.metadata["range"]
        return bool(low <= value <= high)
    return False
