"""Packed matrix products, against float64."""

import os
import platform
import subprocess
import sys

import numba
import numpy as np
import pytest

from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.numerics.products import (
    PANEL_DEPTH,
    PANEL_ROWS,
    add_outer_product,
    new_outer_buffers,
    new_packed,
    pack,
    pack_in_numpy,
    pack_transposed,
    padded,
    product,
)
from charrnn.numerics.tile import BLOCK
from tests.numerics.stored import STORAGES, nan_like, random_stored, to_bfloat16

ROWS, DEPTHS, COLUMNS = [1, 3, 8, 9, 64], [1, 2, 7, 33, 200, 1025], [1, 2, 21, 65, 200]
CLOSE = 3e-6  # the error of a float32 sum of a thousand terms
MARK = np.float32(-7.75)  # stands where nothing may be written


def relative_to_sums(found, a, b, start=0.0):
    """Norm of the error of start + A B, relative to the norm of such sums if nothing cancels."""
    size = np.linalg.norm(np.sqrt(np.square(start) + np.square(a) @ np.square(b)))
    return np.linalg.norm(found - (start + a @ b)) / size


def packed_of(b):
    """Pack B (K, N)."""
    packed = new_packed(b, *b.shape)
    pack(b, packed)
    return packed


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_weights_are_packed_in_blocks(storage, depth):
    """The layout is as documented, from either orientation, whatever was packed there before."""
    for columns in COLUMNS:
        rng, size = np.random.default_rng(depth), {"float32": 1, "bfloat16": 2}[storage]
        earlier, b = random_stored(rng, storage, depth, columns)[0], random_stored(rng, storage, depth, columns)[0]
        blocks, groups = -(-columns // BLOCK), -(-depth // size)
        whole = np.zeros((groups * size, blocks * BLOCK), b.dtype)
        whole[:depth, :columns] = b
        expected = whole.reshape(groups, size, blocks, BLOCK).transpose(2, 0, 3, 1)
        expected = expected.reshape(blocks, groups, BLOCK * size)
        assert padded(columns) == blocks * BLOCK
        for packer, turn in [(pack, np.asarray), (pack_transposed, np.transpose)]:
            packed = new_packed(b, depth, columns)
            for weight in (earlier, b):
                packer(np.ascontiguousarray(turn(weight)), packed)
            assert packed.dtype == b.dtype
            np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_packed_products_are_products(storage, depth):
    """They are for rows that fill tiles and for other numbers of rows; nothing else is read or written."""
    for columns in COLUMNS:
        rng = np.random.default_rng(depth + columns)
        b, exact_b = random_stored(rng, storage, depth, columns)
        packed, width = packed_of(b), padded(columns)
        for rows in ROWS:
            numbers, exact_a = random_stored(rng, storage, rows, depth)
            around = nan_like(numbers, rows + 2, depth)
            around[1:-1] = numbers
            out = np.full((rows + 2, width + 3), MARK)
            out[1:-1, :width] = np.nan
            product(around[1:-1], packed, out[1:-1])
            assert relative_to_sums(out[1:-1, :columns], exact_a, exact_b) < CLOSE, (rows, columns)
            assert (out[1:-1, columns:width] == 0).all()
            assert (out[[0, -1]] == MARK).all()
            assert (out[:, width:] == MARK).all()


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_columns", "depth"), [(1, 1), (65, 7), (BLOCK, 2), (200, 33)])
def test_numpy_packs_as_the_kernel_does(storage, num_columns, depth):
    """The bits are the same, after rounding as PyTorch does."""
    weight = np.random.default_rng(depth).standard_normal((num_columns, depth)).astype(np.float32)
    stored = weight if storage == "float32" else to_bfloat16(weight)
    packed = new_packed(stored, depth, num_columns)
    pack_transposed(stored, packed)
    found = pack_in_numpy(weight, stored)
    assert found.dtype == packed.dtype
    np.testing.assert_array_equal(found, packed)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", [1, 33, 200])
def test_a_row_of_a_product_depends_on_nothing_beside_it(storage, depth):
    """No bit depends on the other rows, or on the block in which its columns stand."""
    rng = np.random.default_rng(depth)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((19, depth), (7 * BLOCK - 5, depth)))
    like = b if storage == "float32" else to_bfloat16(b)
    rows = a if storage == "float32" else to_bfloat16(a)
    whole = np.empty((19, 7 * BLOCK), np.float32)
    product(rows, pack_in_numpy(b, like), whole)
    for count in (1, 2, 8, 9):
        for columns in (slice(0, BLOCK), slice(BLOCK, 5 * BLOCK), slice(3 * BLOCK + 1, len(b)), slice(5, 6)):
            part = pack_in_numpy(b[columns], like)
            out = np.empty((count, len(part) * BLOCK), np.float32)
            product(rows[4 : 4 + count], part, out)
            np.testing.assert_array_equal(out[:, : len(b[columns])], whole[4 : 4 + count, columns])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("depth", "first"), [(1, 1), (7, 3), (33, 2), (200, 5)])
def test_products_accept_rows_with_a_stride(storage, depth, first):
    """Rows of A are contiguous, A isn't; in bfloat16 a row may begin in the middle of a word."""
    rng = np.random.default_rng(depth)
    b, exact_b = random_stored(rng, storage, depth, 21)
    for rows in ROWS:
        numbers, exact_a = random_stored(rng, storage, rows, depth)
        around = nan_like(numbers, rows, first + depth + 4)
        a = around[:, first : first + depth]
        a[:] = numbers
        out = np.empty((rows, padded(21)), np.float32)
        product(a, packed_of(b), out)
        assert relative_to_sums(out[:, :21], exact_a, exact_b) < CLOSE, rows


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_outer_products_are_added(storage, depth):
    """They are added to what was there, and nothing else changes."""
    for columns in COLUMNS:
        rng, width = np.random.default_rng(depth + columns), padded(columns)
        for rows in ROWS:
            a, exact_a = random_stored(rng, storage, depth, rows)
            b, exact_b = random_stored(rng, storage, depth, columns)
            start = rng.standard_normal((rows, width)).astype(np.float32)
            out = np.full((rows + 2, width), MARK)
            out[1:-1] = start
            add_outer_product(a, b, out[1:-1], new_outer_buffers(a, rows, columns))
            assert relative_to_sums(out[1:-1, :columns], exact_a.T, exact_b, start[:, :columns]) < CLOSE, rows
            assert (out[1:-1, columns:] == start[:, columns:]).all()
            assert (out[[0, -1]] == MARK).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", [4 * PANEL_DEPTH, 4 * PANEL_DEPTH + 1, 6 * PANEL_DEPTH - 1])
@pytest.mark.parametrize("rows", [PANEL_ROWS, PANEL_ROWS + 1, 2 * PANEL_ROWS + 9])
def test_outer_products_work_in_panels(storage, depth, rows):
    """They are right for more rows and more depth than a panel has."""
    rng = np.random.default_rng(depth + rows)
    (a, exact_a), (b, exact_b) = random_stored(rng, storage, depth, rows), random_stored(rng, storage, depth, 35)
    out = np.zeros((rows, padded(35)), np.float32)
    add_outer_product(a, b, out, new_outer_buffers(a, rows, 35))
    assert relative_to_sums(out[:, :35], exact_a.T, exact_b) < CLOSE


@pytest.mark.parametrize("storage", STORAGES)
def test_outer_buffers_serve_smaller_products_too(storage):
    """What a larger or longer product left in them has no effect."""
    rng = np.random.default_rng(1)
    buffers = new_outer_buffers(random_stored(rng, storage, 1)[0], 41, 75)
    for depth, rows, columns in [(600, 41, 75), (33, 41, 21), (7, 12, 75), (2, 9, 40)]:
        a, exact_a = random_stored(rng, storage, depth, rows)
        b, exact_b = random_stored(rng, storage, depth, columns)
        out = np.zeros((rows, padded(columns)), np.float32)
        add_outer_product(a, b, out, buffers)
        assert relative_to_sums(out[:, :columns], exact_a.T, exact_b) < CLOSE, depth


@pytest.mark.parametrize(
    ("limit", "fast"),
    [
        (None, True),
        ("ALL", True),
        ("default", True),
        ("AVX2", False),
        ("AVX512_CORE", False),
        ("AVX512_CORE_VNNI", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_AMX", True),
    ],
)
def test_bfloat16_obeys_the_limit_on_pytorch(monkeypatch, limit, fast):
    """ONEDNN_MAX_CPU_ISA can disable bfloat16 on a processor that has it, and can't enable it on another."""
    if limit is None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx512f,+avx512bf16")
    assert has_fast_bfloat16() is fast
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx512f,-avx512bf16")
    assert not has_fast_bfloat16()


OTHER_PROCESSOR = """
import numpy as np
from charrnn.numerics import processor, products, tile
rng = np.random.default_rng(1)
a, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(19, 33), (33, 45)])
packed, out = products.new_packed(b, *b.shape), np.empty((19, products.padded(45)), np.float32)
products.pack(b, packed)
products.product(a, packed, out)
products.add_outer_product(a.T.copy(), b, out, products.new_outer_buffers(a, 19, 45))
expected = 2 * (a.astype(float) @ b)
error = np.linalg.norm(out[:, :45] - expected) / np.linalg.norm(expected)
print(tile.WIDTH, tile.BLOCK, processor.cpu_has("avx512f"), processor.has_fast_bfloat16(), error < 3e-6)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86 processors")
@pytest.mark.parametrize("name", ["haswell", pytest.param("x86-64", marks=pytest.mark.slow)])
def test_products_are_products_on_a_smaller_processor(name):
    """Without AVX-512, and without a fused multiply-add: narrower vectors, the same numbers, no bfloat16.

    The cache of kernels knows for which processor it holds them.
    """
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", OTHER_PROCESSOR]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "24", "False", "False", "True"]
