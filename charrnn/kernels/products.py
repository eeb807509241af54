"""Matrix products at the speed of the processor, for operands as small as one time step's.

A library's product spends a step's time on reordering the weights. Here they are packed once
an update, and a product is a loop over tiles: a few rows of A times one block of columns of
B, all of it in registers until it is done. The tile is written in LLVM's vector types, so
the same lines become AVX-512, AVX2 or NEON; in bfloat16 it needs AVX512-BF16, whose
instruction adds the products of two pairs to a float32.

Packed, B (K, N) is (blocks, K / s, BLOCK * s): block after block of columns, and in a row
of a block s consecutive k side by side for each column; s is 1 in float32 and 2 in
bfloat16. What is missing to whole blocks and pairs is zero.

Letters: M rows of A, K depth, N columns of B.
"""

import os
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, codegen, types
from numba.extending import intrinsic, overload

from charrnn.kernels.compilation import compiled
from charrnn.kernels.vectors import Floats, Stored

_INDEX, _INT32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_build: Any = cgutils  # these two are untyped
_target: Any = codegen


def cpu_has(feature: str) -> bool:
    """Whether the processor that numba compiles for has a feature, by LLVM's name for it."""
    config: Any = numba.config
    chosen = config.CPU_FEATURES  # NUMBA_CPU_FEATURES, by which another processor is played
    features: str = _target.get_host_cpu_features() if chosen is None else chosen
    return f"+{feature}" in features.split(",")


def processor() -> str:
    """The processor that numba compiles for, by LLVM's name for it."""
    config: Any = numba.config
    return config.CPU_NAME or str(llvmlite.binding.get_host_cpu_name())


def has_fast_bfloat16() -> bool:
    """Whether bfloat16 products are faster than float32 ones here.

    ONEDNN_MAX_CPU_ISA, which limits PyTorch's own, is obeyed.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() or "ALL"
    return cpu_has("avx512bf16") and (
        limit in ("ALL", "DEFAULT") or "BF16" in limit or "AMX" in limit or "FP16" in limit
    )


# A tile's sums, one row of B's block and a number of A spread over a vector fit the registers.
# These are constants of the compiled code, so they may depend only on what numba's cache
# asks for too: the processor and its features.
WIDTH, COLUMNS, ROWS = (16, 2, 8) if cpu_has("avx512f") else (8, 3, 4)  # of a vector; vectors in a block; rows of A
BLOCK = WIDTH * COLUMNS
# Blocks that a single row of A meets side by side: one block's few sums would wait for one another.
ABREAST = 3
# What an outer product takes at a time, so that it stays in the caches: rows of either side, columns of A.
STEPS, PANEL = 256, 768


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _make_tile(num_rows: int, num_blocks: int = 1) -> Any:
    """The innermost loop for so many rows of A and blocks of B, as a function that numba can inline."""

    @intrinsic
    def tile(
        typing: Any,
        a: Any,
        a_at: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_at: Any,
        b_step: Any,
        b_next: Any,
        depth: Any,
        out: Any,
        at: Any,
        row: Any,
        add: Any,
    ) -> Any:
        """out[at + i * row + j] (+)= sum over k of A's row i times the columns of blocks of B.

        A's row i begins at a_at + i * a_row and goes on by a_step, the first block begins at
        b_at and goes on by b_step, and b_next further stands the next; all are counted in elements.
        """
        places = (types.intp, types.intp, types.intp)
        signature = types.void(a, *places, b, *places, types.intp, out, types.intp, types.intp, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 9)]
            _Tile(builder, num_rows, num_blocks, bfloat16=a.dtype == types.uint16).emit(*arrays, *arguments)
            return context.get_dummy_value()

        return signature, generate

    return tile


class _Tile:
    """LLVM's instructions for one tile. The sums are local variables, which LLVM turns into registers."""

    VECTOR = ir.VectorType(_FLOAT, WIDTH)
    PAIRS = ir.VectorType(_BFloat(), 2 * WIDTH)

    def __init__(self, builder: Any, num_rows: int, num_blocks: int, *, bfloat16: bool) -> None:
        self.builder, self.num_rows, self.num_blocks, self.bfloat16 = builder, num_rows, num_blocks, bfloat16
        self.word, self.size = (_INT32, 2) if bfloat16 else (_FLOAT, 1)  # of what is spread over a vector
        self.kind = self.PAIRS if bfloat16 else self.VECTOR
        name = "llvm.x86.avx512bf16.dpbf16ps.512" if bfloat16 else f"llvm.fmuladd.v{WIDTH}f32"
        function = ir.FunctionType(self.VECTOR, [self.VECTOR, self.kind, self.kind])
        self.multiply = _build.get_or_insert_function(builder.module, function, name)
        zero = ir.Constant(self.VECTOR, [0.0] * WIDTH)
        width = num_blocks * COLUMNS
        self.sums = [[_build.alloca_once_value(builder, zero) for _ in range(width)] for _ in range(num_rows)]

    def emit(self, a: Any, b: Any, out: Any, *arguments: Any) -> None:
        """The whole tile; arguments as those of `tile`, arrays by their data."""
        _, a_at, a_row, a_step, _, b_at, b_step, b_next, depth, _, at, row, add = arguments
        builder = self.builder
        a_rows = [self._place(a, a_at, builder.mul(a_row, _INDEX(i))) for i in range(self.num_rows)]
        out_rows = [self._place(out, at, builder.mul(row, _INDEX(i))) for i in range(self.num_rows)]
        with builder.if_then(add):
            for i, j in self._cells():
                builder.store(self._load_vector(out_rows[i], j, self.VECTOR), self.sums[i][j])

        def accumulate(step: Any, kind: Any) -> None:
            start = builder.add(b_at, builder.mul(step, b_step))
            blocks = [self._place(b, start, builder.mul(b_next, _INDEX(block))) for block in range(self.num_blocks)]
            columns = [self._load_vector(place, j, self.kind) for place in blocks for j in range(COLUMNS)]
            for i in range(self.num_rows):
                value = self._spread(builder.gep(a_rows[i], [builder.mul(step, a_step)]), kind)
                for j in range(len(columns)):
                    total = builder.load(self.sums[i][j])
                    terms = (total, columns[j], value) if self.bfloat16 else (columns[j], value, total)
                    builder.store(builder.call(self.multiply, terms), self.sums[i][j])

        whole = builder.udiv(depth, _INDEX(self.size))
        with _build.for_range(builder, whole) as loop:
            accumulate(loop.index, self.word)
        if self.bfloat16:
            with builder.if_then(builder.trunc(depth, ir.IntType(1))):  # the last one has no partner
                accumulate(whole, ir.IntType(16))
        for i, j in self._cells():
            place = builder.gep(out_rows[i], [_INDEX(j * WIDTH)])
            builder.store(builder.load(self.sums[i][j]), builder.bitcast(place, self.VECTOR.as_pointer()), align=4)

    def _cells(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.num_rows) for j in range(self.num_blocks * COLUMNS)]

    def _place(self, data: Any, start: Any, offset: Any) -> Any:
        return self.builder.gep(data, [self.builder.add(start, offset)])

    def _load_vector(self, row: Any, number: int, kind: Any) -> Any:
        """The vector of that number in a row, from memory that need not be aligned."""
        size = self.size if kind is self.kind else 1
        place = self.builder.gep(row, [_INDEX(number * WIDTH * size)])
        return self.builder.load(self.builder.bitcast(place, kind.as_pointer()), align=2)

    def _spread(self, place: Any, kind: Any) -> Any:
        """The number, or the pair, at a place of A in every part of a vector."""
        builder = self.builder
        value = builder.load(builder.bitcast(place, kind.as_pointer()), align=2)
        if kind is not self.word:
            value = builder.zext(value, self.word)
        one = builder.insert_element(ir.Constant(ir.VectorType(self.word, WIDTH), ir.Undefined), value, _INT32(0))
        spread = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT32, WIDTH), [0] * WIDTH))
        return builder.bitcast(spread, self.kind)


_tile, _tile_of_one, _wide_tile = _make_tile(ROWS), _make_tile(1), _make_tile(1, ABREAST)


@compiled
def step_size(stored: Stored) -> int:
    """How many consecutive k stand side by side in this storage: s."""
    return 4 // stored.itemsize


@compiled
def padded(num_columns: int) -> int:
    """The columns that a product writes: those of whole blocks."""
    return -(-num_columns // BLOCK) * BLOCK


def new_packed(like: Stored, depth: int, num_columns: int) -> Stored:
    """Zeros in the shape of a packed B (depth, num_columns), stored as `like` is."""
    size = 4 // like.itemsize
    return np.zeros((padded(num_columns) // BLOCK, -(-depth // size), BLOCK * size), like.dtype)


def lay(a: Stored, k: int, first: int, last: int, out: Stored) -> None:
    """Lay columns first…last of row k, in bfloat16 of k and the next number by number, side by side. For kernels only.

    a: (K, …), contiguous, or its rows would not vectorise; out: ((last - first) * s,). A last
    row without a partner gets zeros for one.
    """
    raise NotImplementedError


@overload(lay)
def _lay(a: Any, k: Any, first: Any, last: Any, out: Any) -> Any:
    assert a.layout == "C"

    def one(a: Any, k: Any, first: Any, last: Any, out: Any) -> None:
        row = a[k, first:last]
        for j in range(len(row)):
            out[j] = row[j]

    def pair(a: Any, k: Any, first: Any, last: Any, out: Any) -> None:
        words, row, partner = out.view(np.uint32), a[k, first:last], a[min(k + 1, len(a) - 1), first:last]
        keep = np.uint32(0xFFFF if k + 1 < len(a) else 0)
        for j in range(len(row)):
            words[j] = np.uint32(row[j]) | ((np.uint32(partner[j]) & keep) << np.uint32(16))

    return one if a.dtype == types.float32 else pair


def packed_transpose(b: Floats, like: Stored) -> Stored:
    """Pack B, given as its transpose (N, K), in new memory and stored as `like` is.

    As narrow and pack_transposed together, but for a program that packs once and has no time
    to compile.
    """
    num_columns, depth = b.shape
    size = 4 // like.itemsize
    whole = np.zeros((-(-num_columns // BLOCK) * BLOCK, -(-depth // size) * size), np.float32)
    whole[:num_columns, :depth] = b
    if like.dtype != np.float32:
        bits = whole.view(np.uint32)
        whole = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rows = whole.reshape(-1, BLOCK, whole.shape[1] // size, size)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(len(rows), rows.shape[2], BLOCK * size)


@compiled
def pack(b: Stored, packed: Stored) -> None:
    """Pack B (K, N) into what new_packed made."""
    size = step_size(packed)
    depth, num_columns = b.shape
    row, out = np.zeros(padded(num_columns) * size, b.dtype), packed.view(np.uint32)
    words = row.view(np.uint32)
    for k in range(0, depth, size):
        lay(b, k, 0, num_columns, row)
        for block in range(len(out)):
            for j in range(BLOCK):
                out[block, k // size, j] = words[block * BLOCK + j]


@compiled
def pack_transposed(b: Stored, packed: Stored) -> None:
    """Pack B, given as its transpose (N, K), into what new_packed made.

    Pairs already lie side by side, so it is words of 32 bits that change places.
    """
    num_columns, depth = b.shape
    if depth % step_size(b):
        whole = np.zeros((num_columns, depth + 1), b.dtype)
        for j in range(num_columns):  # loops, because numba takes a second to compile an array's assignment
            for k in range(depth):
                whole[j, k] = b[j, k]
        b = whole
    words, out = b.view(np.uint32), packed.view(np.uint32)
    for block in range(len(out)):
        rows = words[block * BLOCK : (block + 1) * BLOCK]
        for k in range(words.shape[1]):
            for j in range(len(rows)):
                out[block, k, j] = rows[j, k]


@compiled
def _multiply_block(
    a: Stored,
    a_row: int,
    a_step: int,
    b: Stored,
    b_at: int,
    b_step: int,
    depth: int,
    out: Floats,
    at: int,
    num_rows: int,
    add: bool,
) -> None:
    """So many rows of A times one block of columns of B, tile by tile; places and strides as those of a tile."""
    row = out.strides[0] // out.itemsize
    tiled = num_rows - num_rows % ROWS
    for i in range(0, tiled, ROWS):
        _tile(a, i * a_row, a_row, a_step, b, b_at, b_step, 0, depth, out, at + i * row, row, add)
    for i in range(tiled, num_rows):
        _tile_of_one(a, i * a_row, a_row, a_step, b, b_at, b_step, 0, depth, out, at + i * row, row, add)


@compiled
def product(a: Stored, packed: Stored, out: Floats) -> None:
    """out = A B. a: (M, K) with contiguous rows; out: (M, at least padded(N)), its padding overwritten.

    Blocks of B in the outer loop: each stays in the cache until all of A has met it. A number
    of the result doesn't depend on what else is in A or B: its sum goes along K in every tile.
    """
    num_rows, depth = a.shape
    a_row, size, b_step, row = a.strides[0] // a.itemsize, step_size(a), packed.shape[2], out.strides[0] // out.itemsize
    b_next, num_blocks = packed.shape[1] * b_step, packed.shape[0]
    tiled = num_rows - num_rows % ROWS
    for first in range(0, num_blocks, ABREAST):
        abreast = first + ABREAST <= num_blocks
        for block in range(first, min(first + ABREAST, num_blocks)):
            at, count = block * BLOCK, tiled if abreast else num_rows
            _multiply_block(a, a_row, size, packed, block * b_next, b_step, depth, out, at, count, False)
        if abreast:
            at, b_at = first * BLOCK, first * b_next
            for i in range(tiled, num_rows):
                _wide_tile(a, i * a_row, 0, size, packed, b_at, b_step, b_next, depth, out, i * row + at, 0, False)


@compiled
def new_sides(like: Stored, num_rows: int, num_columns: int) -> tuple[Stored, Stored]:
    """Buffers for the rows of A (…, num_rows) and B (…, num_columns) that an outer product takes at a time.

    A stride that is no multiple of the cache's sets keeps rows from driving each other out.
    """
    size = step_size(like)
    a = np.empty((STEPS, (min(num_rows, PANEL) + 16) * size), like.dtype)
    return a, np.zeros((STEPS, (padded(num_columns) + 16) * size), like.dtype)


@compiled
def add_outer_product(a: Stored, b: Stored, out: Floats, sides: tuple[Stored, Stored]) -> None:
    """out += A^T B, the sum over rows of both: what time steps add to a weight's gradient.

    a: (K, M), b: (K, N), contiguous; out: (M, padded(N)); sides: from new_sides(a, M, N). Each
    pair of rows is laid side by side, so that a column of A reads like a row, and B as if it
    were packed.
    """
    (depth, num_rows), num_columns = a.shape, b.shape[1]
    size, row = step_size(a), out.strides[0] // out.itemsize
    at_once = STEPS * size
    side_a, side_b = sides
    a_step, b_step = side_a.shape[1], side_b.shape[1]
    for top in range(0, num_rows, PANEL):
        height = min(PANEL, num_rows - top)
        for first in range(0, depth, at_once):
            last = min(first + at_once, depth)
            for k in range(first, last, size):
                lay(a, k, top, top + height, side_a[(k - first) // size])
                lay(b, k, 0, num_columns, side_b[(k - first) // size])
            count = -(-(last - first) // size) * size
            for column in range(0, num_columns, BLOCK):
                at = top * row + column
                _multiply_block(side_a, size, a_step, side_b, column * size, b_step, count, out, at, height, True)
