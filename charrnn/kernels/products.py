"""Matrix products at the processor's peak speed, for operands as small as those of one time step.

A library's product spends as much time as a step takes on reordering the weights. Here they are
packed once per update. A product is a loop over tiles: a few rows of A times one block of columns
of B, held in registers until it is done. The tile is written in LLVM's vector types, so the same
lines become AVX-512, AVX2 or NEON. In bfloat16 it needs AVX512-BF16, whose instruction adds the
products of two pairs to a float32.

B (K, N) is packed as (blocks, K / s, BLOCK * s): one block of columns after another, and in a row
of a block s consecutive k of each column side by side. s is the number of values in a 32-bit word:
1 in float32 and 2 in bfloat16. Incomplete blocks and pairs are filled with zeros.

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
    """Tell whether the processor that numba compiles for has a feature. feature: LLVM's name for it."""
    config: Any = numba.config
    override = config.CPU_FEATURES  # NUMBA_CPU_FEATURES, to compile for another processor
    features: str = _target.get_host_cpu_features() if override is None else override
    return f"+{feature}" in features.split(",")


def processor() -> str:
    """Return LLVM's name of the processor that numba compiles for."""
    config: Any = numba.config
    return config.CPU_NAME or str(llvmlite.binding.get_host_cpu_name())


def has_fast_bfloat16() -> bool:
    """Tell whether bfloat16 products are faster than float32 products here.

    ONEDNN_MAX_CPU_ISA, which limits PyTorch's own products, limits these too.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() or "ALL"
    return cpu_has("avx512bf16") and (
        limit in ("ALL", "DEFAULT") or "BF16" in limit or "AMX" in limit or "FP16" in limit
    )


# A tile's sums, one row of B's block and one broadcast number of A fit the registers. These are
# constants of the compiled code, so they may depend only on what is part of the key of numba's
# cache: the processor and its features.
WIDTH, COLUMNS, ROWS = (16, 2, 8) if cpu_has("avx512f") else (8, 3, 4)  # floats in a vector, vectors in a block, rows
BLOCK = WIDTH * COLUMNS
# Blocks in a tile of a single row of A: the few sums of one block would wait for each other.
WIDE_BLOCKS = 3
# The part of an outer product that stays in the caches: words along K, columns of A.
PANEL_DEPTH, PANEL_ROWS = 256, 768


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _make_tile(num_rows: int, num_blocks: int = 1) -> Any:
    """Make the innermost loop for a number of rows of A and blocks of B, as a function that numba can inline."""

    @intrinsic
    def tile(
        typing: Any,
        a: Any,
        a_start: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_start: Any,
        b_step: Any,
        b_block: Any,
        depth: Any,
        out: Any,
        out_start: Any,
        out_row: Any,
        add: Any,
    ) -> Any:
        """Compute out[out_start + i * out_row + j] (+)= sum over k of A's row i times column j of B's blocks.

        A's row i begins at a_start + i * a_row with a stride of a_step. The first block begins at
        b_start with a stride of b_step between its rows; blocks are b_block apart. All count elements.
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
    """Emits LLVM's instructions for one tile. The sums are local variables, which LLVM turns into registers."""

    VECTOR = ir.VectorType(_FLOAT, WIDTH)
    PAIRS = ir.VectorType(_BFloat(), 2 * WIDTH)

    def __init__(self, builder: Any, num_rows: int, num_blocks: int, *, bfloat16: bool) -> None:
        self.builder, self.num_rows, self.num_blocks, self.bfloat16 = builder, num_rows, num_blocks, bfloat16
        self.word, self.size = (_INT32, 2) if bfloat16 else (_FLOAT, 1)  # the type that is broadcast
        self.kind = self.PAIRS if bfloat16 else self.VECTOR
        name = "llvm.x86.avx512bf16.dpbf16ps.512" if bfloat16 else f"llvm.fmuladd.v{WIDTH}f32"
        function = ir.FunctionType(self.VECTOR, [self.VECTOR, self.kind, self.kind])
        self.multiply = _build.get_or_insert_function(builder.module, function, name)
        zero = ir.Constant(self.VECTOR, [0.0] * WIDTH)
        width = num_blocks * COLUMNS
        self.sums = [[_build.alloca_once_value(builder, zero) for _ in range(width)] for _ in range(num_rows)]

    def emit(self, a: Any, b: Any, out: Any, *arguments: Any) -> None:
        """Emit the whole tile. a, b, out: the arrays' data; arguments: those of `tile`.

        The loop moves one pointer along A and one along B, so that its addresses need few registers. It ends where B
        does: if it counted its steps, LLVM would unroll it, once more in each kernel that calls it, and the copies
        would keep addresses in memory.
        """
        _, a_start, a_row, a_step, _, b_start, b_step, b_block, depth, _, out_start, out_row, add = arguments
        builder, whole = self.builder, self.builder.udiv(depth, _INDEX(self.size))
        a_rows = [builder.mul(a_row, _INDEX(i)) for i in range(self.num_rows)]
        b_blocks = [builder.mul(b_block, _INDEX(block)) for block in range(self.num_blocks)]
        out_rows = [self._place(out, out_start, builder.mul(out_row, _INDEX(i))) for i in range(self.num_rows)]
        a_place = _build.alloca_once_value(builder, builder.gep(a, [a_start]))
        b_place = _build.alloca_once_value(builder, builder.gep(b, [b_start]))
        b_end = self._place(b, b_start, builder.mul(whole, b_step))
        with builder.if_then(add):
            for i, j in self._cells():
                builder.store(self._load_vector(out_rows[i], j, self.VECTOR), self.sums[i][j])

        def accumulate(kind: Any) -> None:
            a_now, b_now = builder.load(a_place), builder.load(b_place)
            blocks = [builder.gep(b_now, [offset]) for offset in b_blocks]
            columns = [self._load_vector(place, j, self.kind) for place in blocks for j in range(COLUMNS)]
            for i in range(self.num_rows):
                value = self._broadcast(builder.gep(a_now, [a_rows[i]]), kind)
                for j in range(len(columns)):
                    total = builder.load(self.sums[i][j])
                    terms = (total, columns[j], value) if self.bfloat16 else (columns[j], value, total)
                    builder.store(builder.call(self.multiply, terms), self.sums[i][j])
            builder.store(builder.gep(a_now, [a_step]), a_place)
            builder.store(builder.gep(b_now, [b_step]), b_place)

        check, body, end = (builder.append_basic_block(name) for name in ("tile.check", "tile.body", "tile.end"))
        builder.branch(check)
        builder.position_at_end(check)
        builder.cbranch(builder.icmp_unsigned("!=", builder.load(b_place), b_end), body, end)
        builder.position_at_end(body)
        accumulate(self.word)
        builder.branch(check)
        builder.position_at_end(end)
        if self.bfloat16:
            with builder.if_then(builder.trunc(depth, ir.IntType(1))):  # the last value has no partner
                accumulate(ir.IntType(16))
        for i, j in self._cells():
            place = builder.gep(out_rows[i], [_INDEX(j * WIDTH)])
            builder.store(builder.load(self.sums[i][j]), builder.bitcast(place, self.VECTOR.as_pointer()), align=4)

    def _cells(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.num_rows) for j in range(self.num_blocks * COLUMNS)]

    def _place(self, data: Any, start: Any, offset: Any) -> Any:
        return self.builder.gep(data, [self.builder.add(start, offset)])

    def _load_vector(self, row: Any, number: int, kind: Any) -> Any:
        """Load the vector of that number from a row, which need not be aligned."""
        size = self.size if kind is self.kind else 1
        place = self.builder.gep(row, [_INDEX(number * WIDTH * size)])
        return self.builder.load(self.builder.bitcast(place, kind.as_pointer()), align=2)

    def _broadcast(self, place: Any, kind: Any) -> Any:
        """Load a value, or a pair of values, of A into every part of a vector."""
        builder = self.builder
        value = builder.load(builder.bitcast(place, kind.as_pointer()), align=2)
        if kind is not self.word:
            value = builder.zext(value, self.word)
        one = builder.insert_element(ir.Constant(ir.VectorType(self.word, WIDTH), ir.Undefined), value, _INT32(0))
        words = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT32, WIDTH), [0] * WIDTH))
        return builder.bitcast(words, self.kind)


_tile, _row_tile, _wide_row_tile = _make_tile(ROWS), _make_tile(1), _make_tile(1, WIDE_BLOCKS)


@compiled
def values_per_word(stored: Stored) -> int:
    """Return s, the number of values in a 32-bit word of this storage."""
    return 4 // stored.itemsize


@compiled
def padded(num_columns: int) -> int:
    """Round a number of columns up to whole blocks, which a product writes."""
    return -(-num_columns // BLOCK) * BLOCK


def new_packed(like: Stored, depth: int, num_columns: int) -> Stored:
    """Allocate zeros in the shape of a packed B (depth, num_columns), stored as `like` is."""
    size = 4 // like.itemsize
    return np.zeros((padded(num_columns) // BLOCK, -(-depth // size), BLOCK * size), like.dtype)


def interleave_rows(a: Stored, k: int, first: int, last: int, out: Stored) -> None:
    """Write columns first…last of rows k to k + s - 1 of A, interleaved. For kernels only.

    a: (K, …), contiguous, or its rows would not vectorise; out: ((last - first) * s,). A last row
    without a partner is interleaved with zeros.
    """
    raise NotImplementedError


@overload(interleave_rows)
def _interleave_rows(a: Any, k: Any, first: Any, last: Any, out: Any) -> Any:
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


def pack_in_numpy(b: Floats, like: Stored) -> Stored:
    """Pack B, given as its transpose (N, K), into new memory, stored as `like` is.

    Does what narrow and pack_transposed do, without a kernel: a program that packs once
    has no time to compile one.
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
    size = values_per_word(packed)
    depth, num_columns = b.shape
    row, out = np.zeros(padded(num_columns) * size, b.dtype), packed.view(np.uint32)
    words = row.view(np.uint32)
    for k in range(0, depth, size):
        interleave_rows(b, k, 0, num_columns, row)
        for block in range(len(out)):
            for j in range(BLOCK):
                out[block, k // size, j] = words[block * BLOCK + j]


@compiled
def pack_transposed(b: Stored, packed: Stored) -> None:
    """Pack B, given as its transpose (N, K), into what new_packed made.

    Pairs already lie side by side, so 32-bit words are moved.
    """
    num_columns, depth = b.shape
    if depth % values_per_word(b):
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
    b_start: int,
    b_step: int,
    depth: int,
    out: Floats,
    out_start: int,
    num_rows: int,
    add: bool,
) -> None:
    """Multiply num_rows rows of A by one block of columns of B, tile by tile; starts and strides as in a tile."""
    row = out.strides[0] // out.itemsize
    tiled = num_rows - num_rows % ROWS
    for i in range(0, tiled, ROWS):
        _tile(a, i * a_row, a_row, a_step, b, b_start, b_step, 0, depth, out, out_start + i * row, row, add)
    for i in range(tiled, num_rows):
        _row_tile(a, i * a_row, a_row, a_step, b, b_start, b_step, 0, depth, out, out_start + i * row, row, add)


@compiled
def product(a: Stored, packed: Stored, out: Floats) -> None:
    """Compute out = A B. a: (M, K) with contiguous rows; out: (M, at least padded(N)), its padding overwritten.

    The outer loop is over blocks of B, so that a block stays in the cache for all of A. A number of the
    result doesn't depend on the rest of A or B: every tile sums it along K in the same order.
    """
    num_rows, depth = a.shape
    a_row, out_row = a.strides[0] // a.itemsize, out.strides[0] // out.itemsize
    size, b_step, num_blocks = values_per_word(a), packed.shape[2], packed.shape[0]
    b_block = packed.shape[1] * b_step
    tiled = num_rows - num_rows % ROWS
    for first in range(0, num_blocks, WIDE_BLOCKS):
        is_wide = first + WIDE_BLOCKS <= num_blocks
        for block in range(first, min(first + WIDE_BLOCKS, num_blocks)):
            start, count = block * BLOCK, tiled if is_wide else num_rows
            _multiply_block(a, a_row, size, packed, block * b_block, b_step, depth, out, start, count, False)
        if is_wide:
            for i in range(tiled, num_rows):
                start, b_start = i * out_row + first * BLOCK, first * b_block
                _wide_row_tile(a, i * a_row, 0, size, packed, b_start, b_step, b_block, depth, out, start, 0, False)


@compiled
def new_outer_buffers(like: Stored, num_rows: int, num_columns: int) -> tuple[Stored, Stored]:
    """Allocate the panels of A (K, num_rows) and B (K, num_columns) that an outer product works on.

    The stride of A's panel is no multiple of the cache's sets, so that its rows don't evict each other.
    """
    size = values_per_word(like)
    a = np.empty((PANEL_DEPTH, (min(num_rows, PANEL_ROWS) + 16) * size), like.dtype)
    return a, np.empty((padded(num_columns) // BLOCK, PANEL_DEPTH, BLOCK * size), like.dtype)


@compiled
def add_outer_product(a: Stored, b: Stored, out: Floats, buffers: tuple[Stored, Stored]) -> None:
    """Add A^T B to out, the sum over rows of both: what time steps add to a weight's gradient.

    a: (K, M), b: (K, N), contiguous; out: (M, padded(N)); buffers: from new_outer_buffers(a, M, N), or larger ones.
    B is packed; pairs of A's rows are interleaved, so that a column can be read like a row.
    """
    (depth, num_rows), num_blocks = a.shape, padded(b.shape[1]) // BLOCK
    size, row = values_per_word(a), out.strides[0] // out.itemsize
    panel_depth = PANEL_DEPTH * size
    panel_a, panel_b = buffers[0], buffers[1][:num_blocks]
    a_step, b_step = panel_a.shape[1], BLOCK * size
    for first in range(0, depth, panel_depth):
        last = min(first + panel_depth, depth)
        count = -(-(last - first) // size) * size
        pack(b[first:last], panel_b)
        for top in range(0, num_rows, PANEL_ROWS):
            height = min(PANEL_ROWS, num_rows - top)
            for k in range(first, last, size):
                interleave_rows(a, k, top, top + height, panel_a[(k - first) // size])
            for block in range(num_blocks):
                start, b_start = top * row + block * BLOCK, block * PANEL_DEPTH * b_step
                _multiply_block(panel_a, size, a_step, panel_b, b_start, b_step, count, out, start, height, True)
