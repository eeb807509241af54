"""Matrix products at the processor's peak speed, for operands as small as those of one time step.

A library's product spends as much time as a step takes on reordering the weights. Here they are
packed once per update. A product is a loop over tiles (tile.py).

B (K, N) is packed as (blocks, K / s, BLOCK * s): one block of columns after another, and in a row
of a block s consecutive k of each column side by side. s is the number of values in a 32-bit word:
1 in float32 and 2 in bfloat16. Incomplete blocks and pairs are filled with zeros.

Letters: M rows of A, K depth, N columns of B.
"""

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from charrnn.numerics.compilation import compiled
from charrnn.numerics.tile import BLOCK, ROWS, WIDE_BLOCKS, row_tile, tile, wide_row_tile
from charrnn.numerics.vectors import Floats, Stored, to_bfloat16

# The part of an outer product that stays in the caches: words along K, columns of A.
PANEL_DEPTH, PANEL_ROWS = 256, 768


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
        whole = to_bfloat16(whole)
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
        tile(a, i * a_row, a_row, a_step, b, b_start, b_step, 0, depth, out, out_start + i * row, row, add)
    for i in range(tiled, num_rows):
        row_tile(a, i * a_row, a_row, a_step, b, b_start, b_step, 0, depth, out, out_start + i * row, row, add)


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
                wide_row_tile(a, i * a_row, 0, size, packed, b_start, b_step, b_block, depth, out, start, 0, False)


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
