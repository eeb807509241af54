"""The kernels under training: vector maths, stored numbers, packed products, the head's loss; how they are compiled."""

import os
import platform
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from charrnn.kernels import vectors
from charrnn.kernels.compilation import compiled
from charrnn.kernels.head import PackedHead, nats_and_gradients
from charrnn.kernels.products import (
    BLOCK,
    PANEL,
    STEPS,
    add_outer_product,
    cpu_has,
    has_fast_bfloat16,
    new_packed,
    new_sides,
    pack,
    pack_transposed,
    packed_transpose,
    padded,
    product,
)
from tests import reference
from tests.conftest import relative_error

STORAGES = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not cpu_has("avx512bf16"), reason="no AVX512-BF16 here")),
]
ROWS, DEPTHS, COLUMNS = [1, 3, 8, 9, 64], [1, 2, 7, 33, 200, 1025], [1, 2, 21, 65, 200]
CLOSE = 3e-6  # a float32 sum of a thousand terms, one after another
MARK = np.float32(-7.75)  # stands where nothing may be written


@compiled
def apply(function, x, out):
    """One of exp, sigmoid, tanh, by number, over arrays (n,)."""
    if function == 0:
        for i in range(len(x)):
            out[i] = vectors.exp(x[i])
    elif function == 1:
        for i in range(len(x)):
            out[i] = vectors.sigmoid(x[i])
    else:
        for i in range(len(x)):
            out[i] = vectors.tanh(x[i])


@compiled
def widen(source, out):
    """vectors.widen, which only kernels can call."""
    vectors.widen(source, out)


@compiled
def narrow(source, out):
    """vectors.narrow, which only kernels can call."""
    vectors.narrow(source, out)


def to_bfloat16(x):
    """Float32 numbers rounded to bfloat16, as their bits, by PyTorch."""
    tensor = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16)
    return tensor.view(torch.int16).numpy().view(np.uint16)


def from_bfloat16(bits):
    """The float32 numbers that such bits stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def made(rng, storage, *shape):
    """Random numbers in a storage, and what was stored, in float64."""
    x = rng.standard_normal(shape).astype(np.float32)
    if storage == "float32":
        return x, x.astype(np.float64)
    bits = to_bfloat16(x)
    return bits, from_bfloat16(bits).astype(np.float64)


def nan_like(stored, *shape):
    """An array of NaNs in the storage of another: whoever reads one shows it."""
    return np.full(shape, np.nan if stored.dtype == np.float32 else 0x7FC0, stored.dtype)


def error_of_sums(found, a, b, start=0.0):
    """The error of start + A B, in norms, relative to how large such sums are where nothing cancels."""
    size = np.linalg.norm(np.sqrt(np.square(start) + np.square(a) @ np.square(b)))
    return np.linalg.norm(found - (start + a @ b)) / size


def packed_of(b):
    """B (K, N), packed."""
    packed = new_packed(b, *b.shape)
    pack(b, packed)
    return packed


def applied(function, x):
    """One of exp, sigmoid, tanh over an array."""
    x = np.asarray(x, np.float32)
    out = np.empty_like(x)
    apply(["exp", "sigmoid", "tanh"].index(function), x, out)
    return out


@pytest.mark.parametrize(
    ("function", "exact", "relative", "absolute"),
    [("exp", np.exp, 4e-6, 0), ("sigmoid", reference.sigmoid, 5e-6, 0), ("tanh", np.tanh, 0, 2e-7)],
)
def test_functions_are_accurate(function, exact, relative, absolute):
    """Against float64, over all that doesn't saturate and densely near zero."""
    x = np.concatenate([np.linspace(-86.9, 87.9, 50_001), np.linspace(-1, 1, 20_001), np.linspace(-1e-3, 1e-3, 1001)])
    x = x.astype(np.float32)
    np.testing.assert_allclose(applied(function, x), exact(x.astype(float)), rtol=relative, atol=absolute)


def test_exp_is_nearly_exact_near_zero():
    """To a few units in the last place; and e^0 is 1."""
    x = np.linspace(-1, 1, 20_001).astype(np.float32)
    np.testing.assert_allclose(applied("exp", x), np.exp(x.astype(float)), rtol=2e-7)
    assert (applied("exp", [0.0, -0.0]) == 1).all()


@pytest.mark.parametrize(
    ("function", "limits"), [("exp", [0, 0, 1, np.exp(88), np.exp(88)]), ("sigmoid", [0, 0, 0.5, 1, 1]),
                             ("tanh", [-1, -1, 0, 1, 1])]
)  # fmt: skip
def test_functions_saturate(function, limits):
    """Far out they stay where they end, and a NaN stays one."""
    found = applied(function, [-np.inf, -1e30, 0, 1e30, np.inf])
    np.testing.assert_allclose(found, limits, rtol=1e-5, atol=1e-37)
    assert np.isnan(applied(function, [np.nan, -np.nan] * 20)).all()


def test_numbers_are_narrowed_to_the_nearest_bfloat16():
    """All upper halves, with lower ones around the ties: as PyTorch rounds, to even."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | np.uint32(lower)).view(np.float32)
        x = x[~np.isnan(x)]  # denormals, infinities and both zeros are among them
        found = np.empty(len(x), np.uint16)
        narrow(x, found)
        assert (found == to_bfloat16(x)).all(), hex(lower)
    for number, bits in [(1.00390625, 0x3F80), (1.01171875, 0x3F82), (-1.00390625, 0xBF80), (3.4e38, 0x7F80)]:
        narrow(np.array([number], np.float32), found[:1])
        assert found[0] == bits


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000])
def test_no_narrowed_nan_is_a_number(bits):
    """Those that arithmetic makes, of either sign, stay NaNs."""
    found = np.empty(40, np.uint16)
    narrow(np.full(40, bits, np.uint32).view(np.float32), found)
    assert np.isnan(from_bfloat16(found)).all()


def test_widening_is_exact():
    """All bfloat16 numbers, back and forth."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(len(bits), np.float32)
    widen(bits, found)
    exact = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found.view(np.uint32), exact.view(np.uint32))
    numbers, back = found[~np.isnan(found)], np.empty(np.count_nonzero(~np.isnan(found)), np.uint16)
    narrow(numbers, back)
    assert (back == bits[~np.isnan(found)]).all()


@pytest.mark.parametrize("copy", [widen, narrow])
def test_float32_is_stored_as_it_is(copy):
    """Bit for bit."""
    x = np.random.default_rng(1).integers(0, 1 << 32, 1000, np.uint32).view(np.float32)
    found = np.zeros_like(x)
    copy(x, found)
    assert (found.view(np.uint32) == x.view(np.uint32)).all()


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_weights_are_packed_in_blocks(storage, depth, columns):
    """As the layout is described, from either orientation, whatever was packed there before."""
    rng, size = np.random.default_rng(depth), {"float32": 1, "bfloat16": 2}[storage]
    earlier, (b, _) = made(rng, storage, depth, columns)[0], made(rng, storage, depth, columns)
    blocks, groups = -(-columns // BLOCK), -(-depth // size)
    whole = np.zeros((groups * size, blocks * BLOCK), b.dtype)
    whole[:depth, :columns] = b
    expected = whole.reshape(groups, size, blocks, BLOCK).transpose(2, 0, 3, 1).reshape(blocks, groups, BLOCK * size)
    assert padded(columns) == blocks * BLOCK
    for packer, turn in [(pack, np.asarray), (pack_transposed, np.transpose)]:
        packed = new_packed(b, depth, columns)
        for weight in (earlier, b):
            packer(np.ascontiguousarray(turn(weight)), packed)
        assert packed.dtype == b.dtype
        np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_packed_products_are_products(storage, depth, columns):
    """For rows that fill tiles and that don't; nothing else is read or written."""
    rng = np.random.default_rng(depth + columns)
    b, exact_b = made(rng, storage, depth, columns)
    packed, width = packed_of(b), padded(columns)
    for rows in ROWS:
        numbers, exact_a = made(rng, storage, rows, depth)
        around = nan_like(numbers, rows + 2, depth)
        around[1:-1] = numbers
        out = np.full((rows + 2, width + 3), MARK)
        out[1:-1, :width] = np.nan
        product(around[1:-1], packed, out[1:-1])
        assert error_of_sums(out[1:-1, :columns], exact_a, exact_b) < CLOSE, rows
        assert (out[1:-1, columns:width] == 0).all()
        assert (out[[0, -1]] == MARK).all()
        assert (out[:, width:] == MARK).all()


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_columns", "depth"), [(1, 1), (65, 7), (BLOCK, 2), (200, 33)])
def test_packing_in_numpy_is_packing(storage, num_columns, depth):
    """The same bits as those of the compiled way, after rounding as PyTorch does."""
    weight = np.random.default_rng(depth).standard_normal((num_columns, depth)).astype(np.float32)
    stored = weight if storage == "float32" else to_bfloat16(weight)
    packed = new_packed(stored, depth, num_columns)
    pack_transposed(stored, packed)
    found = packed_transpose(weight, stored)
    assert found.dtype == packed.dtype
    np.testing.assert_array_equal(found, packed)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", [1, 33, 200])
def test_a_row_of_a_product_depends_on_nothing_beside_it(storage, depth):
    """Bit for bit: not on the rows it is multiplied with, nor on where its columns stand."""
    rng = np.random.default_rng(depth)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((19, depth), (7 * BLOCK - 5, depth)))
    like = b if storage == "float32" else to_bfloat16(b)
    rows = a if storage == "float32" else to_bfloat16(a)
    whole = np.empty((19, 7 * BLOCK), np.float32)
    product(rows, packed_transpose(b, like), whole)
    for count in (1, 2, 8, 9):
        for columns in (slice(0, BLOCK), slice(BLOCK, 5 * BLOCK), slice(3 * BLOCK + 1, len(b)), slice(5, 6)):
            part = packed_transpose(b[columns], like)
            out = np.empty((count, len(part) * BLOCK), np.float32)
            product(rows[4 : 4 + count], part, out)
            np.testing.assert_array_equal(out[:, : len(b[columns])], whole[4 : 4 + count, columns])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("depth", "first"), [(1, 1), (7, 3), (33, 2), (200, 5)])
def test_products_read_a_part_of_the_columns(storage, depth, first):
    """Rows of A are contiguous, A isn't; in bfloat16 they may begin between two words."""
    rng = np.random.default_rng(depth)
    b, exact_b = made(rng, storage, depth, 21)
    for rows in ROWS:
        numbers, exact_a = made(rng, storage, rows, depth)
        around = nan_like(numbers, rows, first + depth + 4)
        a = around[:, first : first + depth]
        a[:] = numbers
        out = np.empty((rows, padded(21)), np.float32)
        product(a, packed_of(b), out)
        assert error_of_sums(out[:, :21], exact_a, exact_b) < CLOSE, rows


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_outer_products_are_added(storage, depth, columns):
    """To what was there, and to nothing else."""
    rng, width = np.random.default_rng(depth + columns), padded(columns)
    for rows in ROWS:
        (a, exact_a), (b, exact_b) = made(rng, storage, depth, rows), made(rng, storage, depth, columns)
        start = rng.standard_normal((rows, width)).astype(np.float32)
        out = np.full((rows + 2, width), MARK)
        out[1:-1] = start
        add_outer_product(a, b, out[1:-1], new_sides(a, rows, columns))
        assert error_of_sums(out[1:-1, :columns], exact_a.T, exact_b, start[:, :columns]) < CLOSE, rows
        assert (out[1:-1, columns:] == start[:, columns:]).all()
        assert (out[[0, -1]] == MARK).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("depth", [4 * STEPS, 4 * STEPS + 1, 6 * STEPS - 1])
@pytest.mark.parametrize("rows", [PANEL, PANEL + 1, 2 * PANEL + 9])
def test_outer_products_go_by_panels(storage, depth, rows):
    """More rows and more depth than are taken at a time."""
    rng = np.random.default_rng(depth + rows)
    (a, exact_a), (b, exact_b) = made(rng, storage, depth, rows), made(rng, storage, depth, 35)
    out = np.zeros((rows, padded(35)), np.float32)
    add_outer_product(a, b, out, new_sides(a, rows, 35))
    assert error_of_sums(out[:, :35], exact_a.T, exact_b) < CLOSE


@pytest.mark.parametrize("storage", STORAGES)
def test_sides_serve_smaller_products_too(storage):
    """What larger ones, and longer ones, left in them doesn't count."""
    rng = np.random.default_rng(1)
    sides = new_sides(made(rng, storage, 1)[0], 41, 75)
    for depth, rows, columns in [(600, 41, 75), (33, 41, 21), (7, 12, 75), (2, 9, 40)]:
        (a, exact_a), (b, exact_b) = made(rng, storage, depth, rows), made(rng, storage, depth, columns)
        out = np.zeros((rows, padded(columns)), np.float32)
        add_outer_product(a, b, out, sides)
        assert error_of_sums(out[:, :columns], exact_a.T, exact_b) < CLOSE, depth


def run_head(y, weight, bias, targets, *, d_weight, d_bias):
    """The nats, and dy; d_weight and d_bias are added to. y: (R, H); weight: (V, H), stored as y is."""
    forward = new_packed(weight, weight.shape[1], weight.shape[0])
    pack_transposed(weight, forward)
    dy = nan_like(y, *y.shape)
    nats = nats_and_gradients(PackedHead(forward, packed_of(weight), bias), y, targets, dy, d_weight, d_bias)
    return nats, dy.astype(np.float64) if dy.dtype == np.float32 else from_bfloat16(dy).astype(np.float64)


def cross_entropy(y, weight, bias, targets):
    """Nats summed, dy, d_weight and d_bias, of what is scored, in float64 from the softmax."""
    logits = y @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scored = np.flatnonzero(targets >= 0)
    errors = np.zeros_like(logits)
    errors[scored] = np.exp(log_probabilities[scored])
    errors[scored, targets[scored]] -= 1
    return -log_probabilities[scored, targets[scored]].sum(), errors @ weight, errors.T @ y, errors.sum(axis=0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("vocab", "rows"), [(2, 5), (65, 3001), (5000, 60)])
@pytest.mark.parametrize("hidden", [1, 7, 33])
def test_the_loss_and_its_gradients_follow_the_softmax(storage, vocab, rows, hidden):
    """Over one and over several chunks of rows; what isn't scored counts for nothing."""
    rng = np.random.default_rng(vocab + hidden)
    (y, exact_y), (weight, exact_weight) = made(rng, storage, rows, hidden), made(rng, storage, vocab, hidden)
    bias = rng.standard_normal(vocab).astype(np.float32)
    targets = rng.integers(0, vocab, rows)
    targets[[0, rows // 2]] = -1, -100
    start, d_bias = rng.standard_normal((vocab, padded(hidden))).astype(np.float32), np.ones(vocab, np.float32)
    d_weight = start.copy()
    found, dy = run_head(y, weight, bias, targets, d_weight=d_weight, d_bias=d_bias)
    nats, exact_dy, exact_d_weight, exact_d_bias = cross_entropy(exact_y, exact_weight, bias, targets)
    assert found == pytest.approx(nats, rel=1e-6)
    # errors and dy are stored in what y is: half a unit in the last of bfloat16's 8 bits
    tolerance = 1e-5 if storage == "float32" else 2**-8
    assert relative_error(dy, exact_dy) < tolerance
    assert relative_error(d_weight[:, :hidden] - start[:, :hidden], exact_d_weight) < tolerance
    assert relative_error(d_bias, 1 + exact_d_bias) < 1e-5
    assert (dy[targets < 0] == 0).all()
    assert (d_weight[:, hidden:] == start[:, hidden:]).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_scored_costs_nothing(storage):
    """No nats, and not a bit of a gradient."""
    rng = np.random.default_rng(1)
    (y, _), (weight, _) = made(rng, storage, 9, 7), made(rng, storage, 65, 7)
    d_weight, d_bias = np.full((65, padded(7)), MARK), np.full(65, MARK)
    bias = np.zeros(65, np.float32)
    nats, dy = run_head(y, weight, bias, np.full(9, -1), d_weight=d_weight, d_bias=d_bias)
    assert nats == 0
    for gradient, before in [(dy, 0), (d_weight, MARK), (d_bias, MARK)]:
        assert (gradient == before).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_extreme_logits_make_no_infinity(storage):
    """Hundreds of nats are counted right, and certainty costs none."""
    rng = np.random.default_rng(1)
    (y, exact_y), (weight, exact_weight) = made(rng, storage, 4, 3), made(rng, storage, 5, 3)
    bias = np.array([1000, 500, 999, -1e4, 0], np.float32)
    targets = np.array([0, 1, 3, 2])
    d_weight, d_bias = np.zeros((5, padded(3)), np.float32), np.zeros(5, np.float32)
    found, dy = run_head(y, weight, bias, targets, d_weight=d_weight, d_bias=d_bias)
    nats, exact_dy, _, exact_d_bias = cross_entropy(exact_y, exact_weight, bias, targets)
    assert nats > 11_000
    assert found == pytest.approx(nats, rel=1e-6)
    assert relative_error(dy, exact_dy) < (
        1e-4 if storage == "float32" else 2**-8
    )  # logits near 1000 have 14 bits left
    assert relative_error(d_bias, exact_d_bias) < 1e-4


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
def test_bfloat16_heeds_the_limit_on_pytorch(monkeypatch, limit, fast):
    """ONEDNN_MAX_CPU_ISA speaks for these products too, on a processor that has them, and gives none to another."""
    if limit is None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx512f,+avx512bf16")
    assert has_fast_bfloat16() is fast
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx512f,-avx512bf16")
    assert not has_fast_bfloat16()


def run_python(source, folder, **environment):
    """What a program prints, in another process that has the folder for its cache of kernels."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), **environment}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


OTHER_PROCESSOR = """
import numpy as np
from charrnn.kernels import products
rng = np.random.default_rng(1)
a, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(19, 33), (33, 45)])
packed, out = products.new_packed(b, *b.shape), np.empty((19, products.padded(45)), np.float32)
products.pack(b, packed)
products.product(a, packed, out)
products.add_outer_product(a.T.copy(), b, out, products.new_sides(a, 19, 45))
expected = 2 * (a.astype(float) @ b)
error = np.linalg.norm(out[:, :45] - expected) / np.linalg.norm(expected)
print(products.WIDTH, products.BLOCK, products.cpu_has("avx512f"), products.has_fast_bfloat16(), error < 3e-6)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="plays x86 processors")
@pytest.mark.parametrize("name", ["haswell", "x86-64"])
def test_products_are_products_on_a_smaller_processor(tmp_path, name):
    """Without AVX-512, and without a fused multiply-add: narrower vectors, the same numbers, no bfloat16."""
    found = run_python(OTHER_PROCESSOR, tmp_path, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES="")
    assert found == ["8", "24", "False", "False", "True"]


def test_what_other_sources_were_compiled_to_is_forgotten(tmp_path):
    """Whatever their times say: a hash of all kernels' sources lies beside the cache."""
    index, stamp = tmp_path / "recurrent.step-96.py311.nbi", tmp_path / "kernels.sha256"
    forget = vectors._forget_outdated.__wrapped__
    index.touch()
    forget(tmp_path)
    assert not index.exists()  # nobody knows what it was compiled from
    index.touch()
    forget(tmp_path)
    assert index.exists()
    stamp.write_text("of other sources")
    forget(tmp_path)
    assert not index.exists()
    forget(tmp_path / "missing")
    (tmp_path / "file").touch()
    forget(tmp_path / "file")  # a folder that can't be made changes nothing


def test_an_edit_reaches_the_kernels_of_other_files(tmp_path):
    """Compiled, cached, and called again after a change to what it calls."""
    package = tmp_path / "parts"
    package.mkdir()
    shutil.copy(vectors.__file__, package / "vectors.py")
    (package / "caller.py").write_text(
        "from parts.callee import value\nfrom parts.vectors import compiled\n"
        "@compiled\ndef call():\n    return value() + 1\n"
    )
    program = "from parts.caller import call\nprint(call(), sum(call.stats.cache_hits.values()))"
    seen = []
    for number in (1, 2, None):
        if number is not None:
            source = f"from parts.vectors import compiled\n@compiled\ndef value():\n    return {number}\n"
            (package / "callee.py").write_text(source)
        seen.append([int(word) for word in run_python(program, tmp_path, PYTHONPATH=str(tmp_path))])
    assert seen == [[2, 0], [3, 0], [3, 1]]  # what it returns, and whether that came from the disk
