"""The row about hostile files, with checksums that are right, and how they are made.

They are no files at all, another program's, lies about sizes, JSON that breaks readers, or have wrong values.
"""

import contextlib
import copy
import ctypes
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import operator
import os
import pickle
import random
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from charrnn.config import CorpusConfig, ModelConfig, TrainConfig
from charrnn.data.batches import Cursor
from charrnn.files import MODEL_NAME
from charrnn.model.container import read_tensors
from charrnn.training.state import ScalarState
from fault_rows.outcome import Outcome, expect
from fault_rows.runs import FORK, RUN, Files, in_fork, make_text, refusal, run_command

HOSTILE, STATE = "hostile", "state-20.safetensors"  # names of a run and of a file
_ZEROS = "0" * 64
_MARK = rb"\"file_sha256\": \""
_MANY, _BIG = 100_000, 5_000_000  # elements
_ROOM = 3_900_000  # bytes of what a small file's header may be
_HOLE = 100 * 10**9  # bytes of a file that takes no room on the disk
_REMOVED = ...  # as a value: the key is left out
_DEEP = functools.reduce(lambda inner, _: [inner], range(50), 1)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, -0.5, math.nan, math.inf, -math.inf, 65536, 10**15, 1e300),
    *(10**30, -(10**30), 10**400, 1e308, "", "7", "a\nb\x1b[31m", "\ud800", "x" * 10_000),
    *([], [1], ["a"], [["a", 1]], {}, {"a": 1}, {"": None}, _DEEP, _REMOVED),
)
_TOO_LARGE = {"hidden_size": 65536, "embedding_dim": 65536, "num_layers": 64, "vocab_size": 0x110000}
_SETTINGS = {"config": ModelConfig, "model": ModelConfig, "training": TrainConfig, "corpus": CorpusConfig}
_TOLERANT = ("scores", "provenance", "place")  # objects in which nobody relies on a value
_BUDGET = (("num_steps",), ("training", "steps"), ("minutes",), ("seconds",))  # with more of it a run would go on
_SECONDS = 1.0  # of the processor
_MEMORY = 16 << 20  # bytes beyond four times the file's
_SPACE = 1 << 30  # bytes of addresses that a process may take beyond what it begins with
_M_MMAP_THRESHOLD = -3
_HARMLESS = (0, 2, 3, 4, 7)  # how commands may end with files that only say odd things
_TRAIN = "train text.txt --quiet --threads 1 --device cpu --precision float32"
_GOOD = "--test-fraction 0.1 --cell lstm --num-layers 2 --hidden-size 8 --embedding-dim 4 --batch-size 4 --seq-len 8"

Place = tuple[str, ...]  # the keys that lead to a value in a JSON object
Named = Iterator[tuple[Any, ...]]  # what is wrong; the file's bytes, or what makes it; True if it may load


class Good:
    """A good model or state. text: its header, with zeros for the checksum. harm: what an executed pickle makes."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind, self.data, self.harm = kind, path.read_bytes(), path.parents[1] / HOSTILE / "executed"
        self.meta = read_tensors(path, kind=kind)[1]
        end = 8 + int.from_bytes(self.data[:8], "little")
        self.text, self.body = self.data[8:end].decode().replace(self.meta["file_sha256"], _ZEROS), self.data[end:]
        self.header, self.meta["file_sha256"] = json.loads(self.text), _ZEROS
        assert self.described(self.meta) == self.data, "docs/formats.md says something else"

    def sealed(self, header: str | dict[str, Any], body: bytes = b"") -> bytes:
        """The bytes of a file with another header, its 64 zeros replaced by the checksum, or with another body."""
        if isinstance(header, dict):
            header = json.dumps(header, separators=(",", ":"))
            header += " " * (-len(header) % 8)
        data = len(header.encode()).to_bytes(8, "little") + header.encode() + (body or self.body)
        return data.replace(_MARK + _ZEROS.encode(), _MARK + hashlib.sha256(data).hexdigest().encode(), 1)

    def described(self, meta: dict[str, Any], body: bytes = b"", **entries: Any) -> bytes:
        """The bytes of a file with another description, or with more tensors."""
        description = {"__metadata__": {"charrnn": json.dumps(meta, sort_keys=True)}}
        return self.sealed({**self.header, **description, **entries}, body)

    def cases(self) -> list[list["Case"]]:
        """All hostile files made from it, by families."""
        contents = (self.values(), self.misfits(), self.entries())
        families = (*contents, self.no_files(), self.foreign(), self.deep_and_wide(), self.padded())
        return [[Case(self, f"{self.kind}: {name}", *more) for name, *more in family] for family in families]

    def no_files(self) -> Named:
        """Things that aren't regular files, or never end."""

        def put_socket(path: Path) -> None:
            with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)  # a socket's name must be short

        def put_hole(path: Path) -> None:
            entry = {"dtype": "F32", "shape": [_HOLE // 4 - 4096], "data_offsets": [0, _HOLE - (1 << 14)]}
            path.write_bytes(self.sealed({**self.header, "head.bias": entry}))
            os.truncate(path, _HOLE)

        yield from {"a folder": Path.mkdir, "a FIFO": os.mkfifo, "a socket": put_socket, "a hole": put_hole}.items()
        for target in (MODEL_NAME, STATE, "/dev/zero", "/proc/self/mem"):  # the file itself, and one that isn't there
            yield f"a link to {target}", functools.partial(os.symlink, target)

    def foreign(self) -> Named:
        """Pickles, also in disguise, headers whose length is a lie, and checksums in the wrong place."""
        harm = pickle.dumps(Harm(self.harm), protocol=0)
        befores = {"": b"", " behind a header": self.data[: -len(self.body)], " behind it": self.data}
        for name, before in {**befores, " in a zip": b"PK\3\4" + bytes(26)}.items():
            yield f"a pickle{name}", before + harm
        yield "a pickle as the description", self.sealed({**self.header, "__metadata__": {"charrnn": harm.decode()}})
        yield "a pickle as the tensors", self.sealed(self.text, harm.ljust(len(self.body), b".")), True
        length = len(self.data)
        for size in (0, 1, 7, length - 8, length, length + 1, 1 << 22, 100_000_000, 1 << 31, 1 << 63, (1 << 64) - 1):
            yield f"a header of {size} bytes", size.to_bytes(8, "little") + self.data[8:]
        entry = r'"\"file_sha256\": \"' + _ZEROS + '":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
        for key in ('"__metadata__":', f'"{[*self.header][-1]}":'):
            yield f"another checksum before {key}", self.sealed(self.text.replace(key, entry + key))
        yield "metadata twice", self.sealed(self.text.replace('"__metadata__"', '"__metadata__":{},"__metadata__"'))

    def deep_and_wide(self) -> Named:
        """JSON that is deeper, longer or wider than a reader can bear, as the header and in the description."""
        old = self.header["__metadata__"]["charrnn"]

        def put(in_description: bool, start: str, repeated: str, times: int, end: str, path: Path) -> None:
            text = start + repeated * times + end
            new = json.dumps(f'{old[:-1]}, "note": {text}}}')
            path.write_bytes(self.sealed(self.text.replace(json.dumps(old), new) if in_description else text))

        for name, *parts in (
            ("deep lists", "", "[", _MANY, "]" * _MANY),
            ("deep, open lists", "", "[", _MANY, ""),
            ("deep objects", "", '{"a":', _MANY, "1" + "}" * _MANY),
            ("many elements", "[", "1,", _BIG, "1]"),
            ("fewer elements", "[", "1,", _ROOM // 2, "1]"),
            ("empty lists", "[", "[],", _ROOM // 4, "[]]"),
            ("a long number", "", "9", 1_000_000, ""),
            ("a long string", '"', "x", 4 * _BIG, '"'),
            ("a shorter string", '"', "x", _ROOM, '"'),
            ("escapes", '"', r"\u00e9", _ROOM // 7, '"'),
            ("a wide character", '"', "x", _ROOM, '\U0001f600"'),  # what isn't ASCII is not escaped
        ):
            yield f"{name} as the header", functools.partial(put, False, *parts)
            yield f"{name} in the description", functools.partial(put, True, *parts)

    def padded(self) -> Named:
        """Long descriptions in files so large that they may be."""
        size, num_bytes = len(self.body), 96_000_000  # of which a header may be a quarter
        entry = {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [size, size + num_bytes]}

        def put(name: str, value: Any, times: int, path: Path) -> None:
            meta, body = {**self.meta, name: value * times}, self.body + bytes(num_bytes)
            path.write_bytes(self.described(meta, body, padding=entry))

        points = "".join(map(chr, (*range(0xD800), *range(0xDC00, 0x110000))))
        long = (("note", "x", 4 * _BIG), ("note", [1], _BIG), ("vocab", points, 1), ("vocab", "ab", 2 * _BIG))
        for name, value, times in long:
            yield f"padded, with a {name} of {value!r:.10}, {times} times", functools.partial(put, name, value, times)

    def entries(self) -> Named:
        """Tensors that overlap, lie outside, or have a size or a type that isn't theirs."""
        size, (first, second, *_, last) = len(self.body), (name for name in self.header if name != "__metadata__")
        ends = (size + 4, 0, 1 << 62, 1 << 80)
        offsets = [[0, end] for end in ends] + [[size, size + 4], [4, 0], [-4, 0], ["0", "4"], [True, True], [0.0, 4.0]]
        odd: dict[Place, list[Any]] = {
            (first,): [None, _REMOVED],
            (second,): [self.header[first], _REMOVED],
            (last,): [_REMOVED],
            ("more",): [{"dtype": "F32", "shape": [0], "data_offsets": [size, size]}],
            (last, "data_offsets"): [*offsets, None, [], [0], {"0": 4}, [_DEEP]],
            (last, "shape"): [[1 << 62], [1 << 32] * 2, [-1], [0], [1.5], ["1"], None, [True], [1] * 100, [1] * 10_000],
            (last, "dtype"): ["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "f32", "", None, 5, ["F32"]],
        }
        for place, several in odd.items():
            for value in several:
                yield f"{'.'.join(place)} {value!r:.40}", self.sealed(_changed(self.header, place, value))

    def misfits(self) -> Named:
        """Tensors of the right size, but with another name, shape or type, or with a value that isn't finite."""
        for name, entry in self.header.items():
            if name == "__metadata__":
                continue
            shape, end = entry["shape"], entry["data_offsets"][1]
            renamed = {f"{key}x" if key == name else key: value for key, value in self.header.items()}
            yield f"{name} renamed", self.sealed(renamed)
            misshapen = [{"shape": odd} for odd in ([1, *shape], [math.prod(shape) // 2, 2])]
            for odd in (*misshapen, {"dtype": "I32"}, {"dtype": "U32"}):
                yield f"{name} with {odd}", self.sealed({**self.header, name: {**entry, **odd}})
            for number in np.float32([np.nan, np.inf, -np.inf]):
                body = self.body[: end - 4] + number.tobytes() + self.body[end:]
                yield f"{name} with {number}", self.sealed(self.text, body)

    def values(self) -> Named:
        """Each value in the description in turn: of another type, out of range, against the tensors, or only odd."""

        def put(place: Place, value: Any, path: Path) -> None:
            path.write_bytes(self.described(_changed(self.meta, place, value)))

        meta, part = self.meta, "config" if self.kind == "model" else "model"
        wrong: list[tuple[Place, Any]] = [((part, name), value) for name, value in _TOO_LARGE.items()]
        wrong += [((part,), {**meta[part], **_TOO_LARGE}), ((part, "vocab_size"), meta[part]["vocab_size"] + 1)]
        wrong += [((part, "cell"), "rnn")]
        if self.kind == "state":
            wrong += [(("training", "batch_size"), 65536), (("cursor", "time"), 10**14), (("num_steps",), 1)]
            wrong += [(("schedule_start",), meta["num_steps"]), (("schedule_start",), 10**15)]
        odd = [(place, value, _may_be(place, value)) for place in _places(meta) for value in _ODD]
        for place, value, may_load in [*((*pair, False) for pair in wrong), *odd]:
            if not (may_load and place in _BUDGET):
                yield f"{'.'.join(place)} {value!r:.40}", functools.partial(put, place, value), may_load


class Case(NamedTuple):
    """A hostile file of a good one's kind: its bytes, or what makes it. may_load: it only says odd things."""

    good: Good
    name: str
    content: bytes | Callable[[Path], Any]
    may_load: bool = False

    def put(self, path: Path) -> None:
        """Make the file."""
        path.write_bytes(self.content) if isinstance(self.content, bytes) else self.content(path)


class Harm(NamedTuple):
    """Makes a folder when it is unpickled."""

    path: Path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _changed(document: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A copy of a JSON object with another value in one place."""
    changed, (*outer, last) = copy.deepcopy(document), place
    inner = functools.reduce(operator.getitem, outer, changed)
    inner[last] = value
    if value is _REMOVED:
        del inner[last]
    return changed


def _places(value: Any, *before: str) -> Iterator[Place]:
    """All places in a JSON object, those in objects in it too."""
    for name in value if isinstance(value, dict) else ():
        yield (*before, name)
        yield from _places(value[name], *before, name)


@functools.cache
def _kinds() -> dict[Place, tuple[Any, ...]]:
    """The types, or single values, that may stand in a place, and the range of a number."""
    budget, an_object = ((float, type(None)), 0, 1e11), ((dict, list, ""),)
    kinds: dict[Place, tuple[Any, ...]] = {("minutes",): budget, ("seconds",): budget, ("text", "paths"): ((list,),)}
    kinds |= {("text", "sha256"): ((str,),), ("text", "vocab"): ((str,),), ("text", "num_chars"): ((int,),)}
    kinds |= {(part,): an_object for part in ("model", "training", "corpus", "text", *_TOLERANT)}
    for part, settings in {**_SETTINGS, "": ScalarState, "cursor": Cursor}.items():
        for field in dataclasses.fields(settings):
            may_be_left_out = part in _SETTINGS and field.default is not dataclasses.MISSING
            types = (*(get_args(field.type) or (field.type,)), *([_REMOVED] if may_be_left_out else []))
            kinds[(part, field.name) if part else (field.name,)] = types, *field.metadata.get("range", ())
    return kinds


def _may_be(place: Place, value: Any) -> bool:
    """Whether a file with this value in this place may load, going by the value's type and range."""
    if len(place) > 1 and place[0] in _TOLERANT:
        return True
    types, low, high = (*_kinds().get(place, ((),)), -math.inf, math.inf)[:3]
    if type(value) in (int, float):
        return (float in types or type(value) in types) and low <= value <= high
    return type(value) in types or value in types


def fill(folder: Path, outcome: Outcome, count: int, rng: random.Random) -> None:
    """Try so many hostile files, of each family in turn; every fourth one goes through the command line as well."""
    if sys.platform != "linux":
        outcome.skipped = "memory is measured by Linux's /proc"
        return
    folder.mkdir()
    (folder / "text.txt").write_text(make_text(4000))
    run_command(f"{_TRAIN} --run {RUN} {_GOOD} --steps 30".split(), folder)
    model, state = Good(Files(folder).model, "model"), Good(Files(folder).states()[-1], "state")  # an unfinished one
    families = [family for both in zip(model.cases(), state.cases(), strict=True) for family in both]
    for family in families:
        rng.shuffle(family)
    in_turn = (case for several in itertools.zip_longest(*families) for case in several if case)
    for number, case in enumerate(itertools.islice(in_turn, count)):
        with outcome.attempt(case.name):
            check_case(folder, case, number % 4 == 0)
        shutil.rmtree(folder / "checkpoints" / HOSTILE, ignore_errors=True)


def check_case(folder: Path, case: Case, as_command: bool) -> None:
    """The function that reads such a file refuses it, and so do the commands; or, if it may load, nothing breaks."""
    is_model = case.good.kind == "model"
    path = folder / "checkpoints" / HOSTILE / (MODEL_NAME if is_model else STATE)
    path.parent.mkdir()
    expect(in_fork(functools.partial(case.put, path)) == 0, "could not be made")
    room = path.lstat().st_blocks * 512
    found, seconds, grown = measured(path, Files(folder).model)
    expect(not found or found.startswith(f"{path}: "), f"the error doesn't name the file: {found}")
    used = f"{seconds:.2f} s, {grown / 1e6:,.0f} MB for a file of {room / 1e6:,.0f} MB"
    expect(seconds <= _SECONDS and grown <= 4 * room + _MEMORY, used)
    expect(found or case.may_load or not is_model, "loads")
    commands = [f"info {path}", f"info {path} --json", f"eval --model {path}"]
    if not is_model:
        commands = [f"{_TRAIN} --run {HOSTILE}"]
    codes = _HARMLESS if case.may_load and not found else (4,)
    for command in commands[: 1 if as_command else 0] if found else commands:
        child = run_command(command.split(), folder, codes, before=limit_space)
        expect("Traceback" not in child.errors(), child.errors()[-300:])
        expect(child.exitcode == 0 or child.errors().count("\n") == 1, child.errors()[-300:])
    expect(not case.good.harm.exists(), "was executed")


def measured(path: Path, good: Path) -> tuple[str, float, int]:
    """Read a file in a process of its own: the message it was refused with, seconds of the processor, bytes of memory.

    good: a file that is read before, so that all code is in memory.
    """
    ours, theirs = FORK.Pipe(duplex=False)

    def peak() -> int:  # bytes of memory that this process has taken at most
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    def measure() -> None:
        refusal(good)
        limit_space()
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 17)  # the default, before the parent freed large blocks
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before, begun = peak(), time.process_time()
        found = refusal(path)[:1000]
        theirs.send((found, time.process_time() - begun, peak() - before))

    expect(in_fork(measure) == 0, "reading hangs or breaks")
    return ours.recv()


def limit_space() -> None:
    """Have the system refuse what a hostile file could make this process ask for."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _SPACE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
