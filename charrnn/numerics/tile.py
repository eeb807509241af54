"""The innermost loop of a matrix product: a few rows of A times one block of columns of B, held in registers.

It is written in LLVM's vector types, so the same lines become AVX-512, AVX2 or NEON. In bfloat16 it needs AVX512-BF16,
whose instruction adds the products of two pairs to a float32.

Letters: A, B and their packing as in products.py.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from charrnn.numerics.processor import cpu_has

_INDEX, _INT32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_build: Any = cgutils  # untyped

# A tile's sums, one row of B's block and one broadcast number of A fit the registers. These are
# constants of the compiled code, so they may depend only on what is part of the key of numba's
# cache: the processor and its features.
WIDTH, COLUMNS, ROWS = (16, 2, 8) if cpu_has("avx512f") else (8, 3, 4)  # floats in a vector, vectors in a block, rows
BLOCK = WIDTH * COLUMNS
# Blocks in a tile of a single row of A: the few sums of one block would wait for each other.
WIDE_BLOCKS = 3


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
    def multiply(
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

    return multiply


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
        """Emit the whole tile. a, b, out: the arrays' data; arguments: those of the intrinsic.

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


tile, row_tile, wide_row_tile = _make_tile(ROWS), _make_tile(1), _make_tile(1, WIDE_BLOCKS)
