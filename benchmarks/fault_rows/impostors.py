"""What may lie in the place of a file: no file at all, another program's, or one that is made to harm its reader."""

import functools
import json
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fault_rows.material import ZEROS, Good, edited, nested, sealed

MANY = 5_000_000  # elements of a list
LONG = 20_000_000  # bytes of a string
_PADDING = {"padding": np.zeros(24_000_000, np.float32)}  # which makes room for a header of a quarter of that
_DEEP = 100_000
_ROOM = 3_900_000  # bytes of what a small file's header may be
_HOLE = 100 * 10**9  # bytes of a file that takes no room on the disk
_MARKS = "executed"  # in the name of a folder that somebody makes who executes a pickle


@dataclass(frozen=True)
class Case:
    """A hostile file. put: make it at a path.

    may_load: it only says odd things that nobody relies on, so it needn't be refused.
    """

    name: str
    kind: str
    put: Callable[[Path], Any]
    may_load: bool = False


def no_files(good: Good) -> Iterator[Case]:
    """Things that aren't regular files, or never end."""

    def put_socket(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(".", os.O_RDONLY)
            os.chdir(path.parent)  # a socket's name must be short
            server.bind(path.name)
            os.fchdir(here)
            os.close(here)

    def put_hole(data: bytes) -> Callable[[Path], None]:
        def put(path: Path) -> None:
            path.write_bytes(data)
            os.truncate(path, _HOLE)

        return put

    def claim_all(header: dict[str, Any]) -> None:
        header["head.bias"] = {"dtype": "F32", "shape": [_HOLE // 4 - 4096], "data_offsets": [0, _HOLE - (1 << 14)]}

    places: dict[str, Callable[[Path], Any]] = {
        "a folder": Path.mkdir,
        "a FIFO": os.mkfifo,
        "a socket": put_socket,
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to nothing": lambda path: path.symlink_to("nothing"),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to the memory of its reader": lambda path: path.symlink_to("/proc/self/mem"),
        "nothing in it": put_hole(b""),
        "a hole": put_hole(bytes(8)),
        "a hole behind it": put_hole(good.data),
        "a hole that its tensors are in": put_hole(edited(good, claim_all)),
    }
    yield from (Case(f"{good.kind}: {name}", good.kind, put) for name, put in places.items())


class _Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path.with_name(_MARKS)),)


def was_executed(path: Path) -> bool:
    """Whether somebody executed what lay at this path."""
    return path.with_name(_MARKS).exists()


def foreign(good: Good) -> Iterator[Case]:
    """Files of other programs, and pickles in disguise."""

    def put_pickle(path: Path, before: bytes = b"", after: bytes = b"") -> None:
        path.write_bytes(before + pickle.dumps(_Harm(path)) + after)

    def put_as_description(path: Path) -> None:
        harm = pickle.dumps(_Harm(path), protocol=0).decode("latin-1")
        path.write_bytes(edited(good, lambda header: {**header, "__metadata__": {"charrnn": harm}}))

    def put_as_tensors(path: Path) -> None:
        path.write_bytes(sealed(good.header, pickle.dumps(_Harm(path)).ljust(len(good.body), b".")))

    places: dict[str, Callable[[Path], Any]] = {
        "a pickle": put_pickle,
        "a pickle behind a header": lambda path: put_pickle(path, good.data[: -len(good.body)]),
        "a pickle behind it": lambda path: put_pickle(path, good.data),
        "a pickle as the description": put_as_description,
        "a pickle as the first tensor": put_as_tensors,
        "a zip": lambda path: put_pickle(path, b"PK\3\4" + bytes(26)),
        "a text": lambda path: path.write_text("To be, or not to be.\n" * 500),
        "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    }
    for name, put in places.items():
        as_numbers = name == "a pickle as the first tensor"  # four bytes of anything are a number too
        yield Case(f"{good.kind}: {name}", good.kind, put, may_load=as_numbers)


def sizes(good: Good) -> Iterator[Case]:
    """Headers whose length is a lie."""
    length = len(good.data)
    for size in (0, 1, 7, length - 8, length, length + 1, 1 << 22, 100_000_000, 1 << 31, 1 << 63, (1 << 64) - 1):
        data = size.to_bytes(8, "little") + good.data[8:]
        yield Case(f"{good.kind}: a header of {size} bytes", good.kind, lambda path, data=data: path.write_bytes(data))


def deep_and_wide(good: Good) -> Iterator[Case]:
    """JSON that is deeper, longer or wider than a reader can bear."""

    def in_header(text: str, path: Path) -> None:
        path.write_bytes(sealed(text, good.body))

    def in_description(text: str, path: Path) -> None:
        old = json.loads(good.header)["__metadata__"]["charrnn"]
        assert good.header.count(json.dumps(old)) == 1
        path.write_bytes(
            sealed(good.header.replace(json.dumps(old), json.dumps(f'{old[:-1]}, "note": {text}}}')), good.body)
        )

    def as_is(text: str, path: Path) -> None:  # what isn't ASCII is not escaped
        path.write_bytes(sealed(good.header.replace(r"\"kind\"", rf"\"note\": \"{text}\", \"kind\""), good.body))

    texts: dict[str, Callable[[], str]] = {
        "100,000 deep": lambda: "[" * _DEEP + "]" * _DEEP,
        "100,000 deep and open": lambda: "[" * _DEEP,
        "objects 100,000 deep": lambda: '{"a":' * _DEEP + "1" + "}" * _DEEP,
        "5 million elements": lambda: "[" + "1," * MANY + "1]",
        "2 million elements": lambda: "[" + "1," * (_ROOM // 2) + "1]",
        "many empty lists": lambda: "[" + "[]," * (_ROOM // 4) + "[]]",
        "a number of a million digits": lambda: "9" * 1_000_000,
        "20 MB of a string": lambda: '"' + "x" * LONG + '"',
        "4 MB of a string": lambda: '"' + "x" * _ROOM + '"',
        "4 MB of escapes": lambda: '"' + "\\u00e9" * (_ROOM // 7) + '"',
    }
    for name, text in texts.items():
        for where, write in (("header", in_header), ("description", in_description)):
            put = functools.partial(lambda write, text, path: write(text(), path), write, text)
            yield Case(f"{good.kind}: {name} in the {where}", good.kind, put, may_load=name.startswith("4 MB"))
    yield Case(
        f"{good.kind}: 4 MB and a wide character", good.kind, lambda path: as_is("x" * _ROOM + "\U0001f600", path)
    )


def padded(good: Good) -> Iterator[Case]:
    """The same in files so large that their headers may be."""
    tensors = {**good.tensors, **_PADDING}
    points = "".join(map(chr, (*range(0xD800), *range(0xDC00, 0x110000))))
    for name, more in {
        "20 MB of a string": {"note": "x" * LONG},
        "5 million elements": {"note": [1] * MANY},
        "a vocabulary of all there is": {"vocab": points},
        "a vocabulary of 20 MB": {"vocab": "ab" * (LONG // 2)},
    }.items():
        write = functools.partial(good.write, tensors=tensors, meta={**good.meta, **more})
        yield Case(f"{good.kind}: {name}, padded", good.kind, write)


def doubled(good: Good) -> Iterator[Case]:
    """Keys that stand twice, other ways to write the same, checksums in the wrong place."""
    first, last = min(good.tensors), max(good.tensors)
    mark = r'"\"file_sha256\": \"' + "0" * 64 + '"'
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
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
        ("a checksum in capitals", ZEROS, "A" * 64),
        ("no checksum", r"\"file_sha256\"", r"\"file_sha257\""),
    ):
        assert good.header.count(old) == 1, old
        data = sealed(good.header.replace(old, new), good.body)
        yield Case(f"{good.kind}: {name}", good.kind, lambda path, data=data: path.write_bytes(data))
    for code in ("utf-16", "utf-32", "utf-8-sig"):
        data = sealed(good.header.encode(code), good.body)
        yield Case(f"{good.kind}: a header in {code}", good.kind, lambda path, data=data: path.write_bytes(data))


def misplaced(good: Good) -> Iterator[Case]:
    """Tensors that overlap, lie outside, have a size that isn't theirs, or no type."""
    names = sorted(good.tensors, key=lambda name: json.loads(good.header)[name]["data_offsets"])
    first, second, last = names[0], names[1], names[-1]
    size = len(good.body)

    def having(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda header: header[name].update(values)

    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "overlapping": lambda header: header[second].update(header[first]),
        "one missing": lambda header: header.pop(second) and None,
        "the last missing": lambda header: header.pop(last) and None,
        "all missing": lambda header: {"__metadata__": header["__metadata__"]},
        "an empty one more": lambda header: header.update(
            {"more": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}}
        ),
        "no entry": lambda header: header.update({first: None}),
        "no name": lambda header: header.update({"": header.pop(first)}),
    }
    for offsets in ([0, size + 4], [size, size + 4], [4, 0], [-4, 0], [0, 1 << 62], [0, 1 << 80], [0, 0], ["0", "4"]):
        edits[f"at {offsets}"] = having(last, data_offsets=offsets)
    for offsets in (None, [], [0], [0.0, 4.0], [True, True], {"0": 4}, [nested(50)]):
        edits[f"at {str(offsets)[:20]}"] = having(last, data_offsets=offsets)
    for shape in ([1 << 62], [1 << 32, 1 << 32], [-1], [0], [1.5], ["1"], None, [True], [1] * 100, [1] * 10_000):
        edits[f"of shape {str(shape)[:20]}"] = having(last, shape=shape)
    for dtype in ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "f32", "", None, 5, ["F32"]):
        edits[f"of type {dtype}"] = having(last, dtype=dtype)
    for name, edit in edits.items():
        data = edited(good, edit)
        yield Case(f"{good.kind}: a tensor {name}", good.kind, lambda path, data=data: path.write_bytes(data))
