"""A recurrent layer that learns from every window of one lane: forward, and backward with the update of its weights.

With one lane a step is a matrix times a vector, and takes as long as reading the matrix. So the weights stay in
PyTorch's layout: a row serves forward, by its dot product with the input, and backward, where it is added to the
input's gradient. Nothing is packed after an update, and no gradient of a weight is ever whole in memory.

The units form NUM_PARTS parts, each with all gates of its units. Threads share the parts and wait for each other after
each step. Every sum is over one part in a fixed order, so the result does not depend on the number of threads.

Letters: T steps, I input size, H hidden size, N gates * H.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.kernels.cells import (
    GRU,
    LSTM,
    RNN,
    gru_step,
    gru_step_backward,
    lstm_step,
    lstm_step_backward,
    rnn_step,
    rnn_step_backward,
)
from charrnn.numerics.barrier import wait
from charrnn.numerics.compilation import compiled
from charrnn.numerics.products import add_outer_product, new_outer_buffers, pack, padded, product
from charrnn.numerics.tile import BLOCK
from charrnn.numerics.vectors import Floats

NUM_PARTS = 2
_ROWS = 32  # of a weight whose gradient is computed at a time, so that it stays in the cache


class LaneWeights(NamedTuple):
    """A layer's parameters as PyTorch has them.

    cell: from cells.CELLS; input: (N, I); recurrent: (N, H); biases: (N,).
    """

    cell: int
    input: Floats
    recurrent: Floats
    input_bias: Floats
    recurrent_bias: Floats


class Learning(NamedTuple):
    """How a layer learns: what its parameters decay to, and their steps for a gradient of one."""

    origins: LaneWeights
    steps: LaneWeights
    decay: float


class LaneActivations(NamedTuple):
    """A window of one lane.

    x: (T, I); resets: (T,), where the state is set to zeros before the step. projected: (T, N), W_ih x + b, one part
    after another. before, y: (T, H), the state before and after each step; cells_before, cells: the same for the LSTM's
    c. gates: (T, 4H), one part after another, in a part [r | z | n | W_hn h + b] or [i | f | g | o].
    """

    x: Floats
    resets: NDArray[np.bool_]
    projected: Floats
    before: Floats
    y: Floats
    cells_before: Floats
    cells: Floats
    gates: Floats


class LaneGradients(NamedTuple):
    """Gradients of a window, which backward fills in.

    carry: (T, NUM_PARTS, H), each part's share of the gradients of the states before the steps, through the products;
    dx: (NUM_PARTS, T, padded(I)), of the inputs. input, recurrent: (N, T), of the pre-activations, for each weight.
    """

    carry: Floats
    dx: Floats
    input: Floats
    recurrent: Floats


class Team(NamedTuple):
    """Threads that share a lane. barrier: where they wait; num_threads: for how many."""

    barrier: NDArray[np.int64]
    num_threads: int


@compiled
def part_units(part: int, size: int) -> tuple[int, int]:
    """Return the first unit of a part, and the first after it."""
    return size * part // NUM_PARTS, size * (part + 1) // NUM_PARTS


@compiled
def multiply_rows(rows: Floats, x: Floats, bias: Floats, out: Floats) -> None:
    """Compute out = rows x + bias. rows: (n, k), x: (k,), bias, out: (n,)."""
    whole = len(rows) - len(rows) % 4
    for i in range(0, whole, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        sum_a, sum_b, sum_c, sum_d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for k in range(len(x)):
            sum_a += a[k] * x[k]
            sum_b += b[k] * x[k]
            sum_c += c[k] * x[k]
            sum_d += d[k] * x[k]
        out[i], out[i + 1], out[i + 2], out[i + 3] = sum_a, sum_b, sum_c, sum_d
    for i in range(whole, len(rows)):
        row, total = rows[i], np.float32(0.0)
        for k in range(len(x)):
            total += row[k] * x[k]
        out[i] = total
    for i in range(len(out)):
        out[i] += bias[i]


@compiled
def add_rows(rows: Floats, factors: Floats, out: Floats) -> None:
    """Add each row times its factor to out. rows: (n, k), factors: (n,), out: (k,)."""
    whole = len(rows) - len(rows) % 4
    for i in range(0, whole, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        factor_a, factor_b, factor_c, factor_d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        for k in range(len(out)):
            out[k] += a[k] * factor_a + b[k] * factor_b + c[k] * factor_c + d[k] * factor_d
    for i in range(whole, len(rows)):
        row, factor = rows[i], factors[i]
        for k in range(len(out)):
            out[k] += row[k] * factor


@compiled
def lane_forward(weights: LaneWeights, saved: LaneActivations, parts: tuple[int, int], team: Team) -> None:
    """Run a layer over a window on this thread's parts, the first and the one after the last.

    saved: x, resets, before[0] and cells_before[0] are given, whatever resets[0] says; the rest is filled in.
    """
    num_steps, size = saved.y.shape
    num_gates = len(weights.input_bias) // size
    recurrent = np.empty(len(weights.input_bias), np.float32)
    for part in range(parts[0], parts[1]):
        project_window(weights, saved, part)
    for t in range(num_steps):
        for part in range(parts[0], parts[1]):
            first, last = part_units(part, size)
            count = last - first
            p, r = saved.projected[t, num_gates * first : num_gates * last], recurrent[: num_gates * count]
            for gate in range(num_gates):
                rows, own = slice(gate * size + first, gate * size + last), slice(gate * count, (gate + 1) * count)
                multiply_rows(weights.recurrent[rows], saved.before[t], weights.recurrent_bias[rows], r[own])
            h, gates = saved.y[t, first:last], saved.gates[t, 4 * first : 4 * last]
            for i in range(count):
                h[i] = saved.before[t, first + i]
            if weights.cell == RNN:
                rnn_step(p, r, h)
            elif weights.cell == GRU:
                for i in range(count):
                    gates[3 * count + i] = r[2 * count + i]
                gru_step(p, r, h)
            else:
                c = saved.cells[t, first:last]
                for i in range(count):
                    c[i] = saved.cells_before[t, first + i]
                lstm_step(p, r, h, c)
            if weights.cell != RNN:
                for i in range(len(r)):
                    gates[i] = r[i]
            if t + 1 < num_steps:
                factor = np.float32(0.0 if saved.resets[t + 1] else 1.0)
                for i in range(first, last):
                    saved.before[t + 1, i] = saved.y[t, i] * factor
                if weights.cell == LSTM:
                    for i in range(first, last):
                        saved.cells_before[t + 1, i] = saved.cells[t, i] * factor
        wait(team.barrier, team.num_threads)


@compiled
def project_window(weights: LaneWeights, saved: LaneActivations, part: int) -> None:
    """Compute a part of saved.projected: all steps for a few rows of the input weight, while they are in the cache."""
    num_steps, size = saved.y.shape
    num_gates = len(weights.input_bias) // size
    first, last = part_units(part, size)
    for gate in range(num_gates):
        place = num_gates * first + gate * (last - first)
        for start in range(first, last, 4):
            stop = min(start + 4, last)
            rows, out = slice(gate * size + start, gate * size + stop), place + start - first
            for t in range(num_steps):
                columns = saved.projected[t, out : out + stop - start]
                multiply_rows(weights.input[rows], saved.x[t], weights.input_bias[rows], columns)


@compiled
def lane_backward(
    weights: LaneWeights,
    saved: LaneActivations,
    dy: Floats,
    out: LaneGradients,
    parts: tuple[int, int],
    team: Team,
) -> None:
    """Backpropagate through a layer's window on this thread's parts. dy: (T, H), of the outputs."""
    num_steps, size = saved.y.shape
    num_gates = len(weights.input_bias) // size
    past_h, past_c = np.zeros(size, np.float32), np.zeros(size, np.float32)  # gradients that pass by the products
    scratch = np.empty(6 * size, np.float32)
    for t in range(num_steps - 1, -1, -1):
        for part in range(parts[0], parts[1]):
            first, last = part_units(part, size)
            count = last - first
            d, dc, buffer = past_h[first:last], past_c[first:last], scratch[: 6 * count]
            before, gates = saved.before[t, first:last], saved.gates[t, 4 * first : 4 * last]
            for i in range(count):
                d[i] += dy[t, first + i]
            if t + 1 < num_steps:
                for other in range(NUM_PARTS):
                    for i in range(count):
                        d[i] += out.carry[t + 1, other, first + i]
            if weights.cell == RNN:
                rnn_step_backward(d, saved.y[t, first:last], buffer)
            elif weights.cell == GRU:
                gru_step_backward(d, before, gates, buffer)
            else:
                lstm_step_backward(d, dc, saved.cells_before[t, first:last], saved.cells[t, first:last], gates, buffer)
            carry = out.carry[t, part]
            carry[:] = np.float32(0.0)
            for gate in range(num_gates):
                own = buffer[gate * count : (gate + 1) * count]
                for i in range(count):
                    out.input[gate * size + first + i, t] = own[i]
                if weights.cell == GRU and gate == 2:
                    own = buffer[3 * count : 4 * count]
                for i in range(count):
                    out.recurrent[gate * size + first + i, t] = own[i]
                if not saved.resets[t]:
                    add_rows(weights.recurrent[gate * size + first : gate * size + last], own, carry)
            if saved.resets[t]:
                for i in range(count):
                    d[i], dc[i] = np.float32(0.0), np.float32(0.0)
        wait(team.barrier, team.num_threads)
    buffers = new_outer_buffers(weights.input, num_steps, saved.x.shape[1])
    for part in range(parts[0], parts[1]):
        first, last = part_units(part, size)
        out.dx[part, :] = np.float32(0.0)
        for gate in range(num_gates):
            rows = slice(gate * size + first, gate * size + last)
            add_outer_product(out.input[rows], weights.input[rows], out.dx[part], buffers)


@compiled
def pack_inputs(inputs: Floats) -> Floats:
    """Pack a window's inputs (T, K) for learn_rows."""
    packed = np.empty((padded(inputs.shape[1]) // BLOCK, len(inputs), BLOCK), np.float32)
    pack(inputs, packed)
    return packed


@compiled
def learn_rows(
    weight: Floats, origin: Floats, steps: Floats, d: Floats, inputs: Floats, decay: float, scale: float
) -> None:
    """Update rows of a weight, (n, K): back to their origin by a share `decay`, then down their gradient.

    The gradient is the product of d (n, T) and the packed inputs (T, K), times `scale`. steps: (n, K).
    """
    depth = weight.shape[1]
    gradient = np.empty((_ROWS, padded(depth)), np.float32)
    share, factor = np.float32(decay), np.float32(scale)
    for start in range(0, len(weight), _ROWS):
        stop = min(start + _ROWS, len(weight))
        product(d[start:stop], inputs, gradient)
        for i in range(start, stop):
            row, target, step, g = weight[i], origin[i], steps[i], gradient[i - start]
            for k in range(depth):
                row[k] += share * (target[k] - row[k]) - factor * step[k] * g[k]


@compiled
def learn_bias(bias: Floats, origin: Floats, steps: Floats, d: Floats, decay: float, scale: float) -> None:
    """Update a bias (n,) as learn_rows does a weight: its inputs are ones."""
    share, factor = np.float32(decay), np.float32(scale)
    for i in range(len(bias)):
        row, gradient = d[i], np.float32(0.0)
        for t in range(len(row)):
            gradient += row[t]
        bias[i] += share * (origin[i] - bias[i]) - factor * steps[i] * gradient


@compiled
def lane_learn(
    weights: LaneWeights,
    saved: LaneActivations,
    gradients: LaneGradients,
    learning: Learning,
    scale: float,
    parts: tuple[int, int],
) -> None:
    """Update this thread's parts of a layer after lane_backward. scale: of the gradient."""
    size, (origins, steps, decay) = saved.y.shape[1], learning
    inputs, states = pack_inputs(saved.x), pack_inputs(saved.before)
    for gate in range(len(weights.input_bias) // size):
        for part in range(parts[0], parts[1]):
            first, last = part_units(part, size)
            rows = slice(gate * size + first, gate * size + last)
            d = gradients.input[rows]
            learn_rows(weights.input[rows], origins.input[rows], steps.input[rows], d, inputs, decay, scale)
            bias, origin, step = weights.input_bias[rows], origins.input_bias[rows], steps.input_bias[rows]
            learn_bias(bias, origin, step, d, decay, scale)
            d = gradients.recurrent[rows]
            learn_rows(weights.recurrent[rows], origins.recurrent[rows], steps.recurrent[rows], d, states, decay, scale)
            bias, origin, step = weights.recurrent_bias[rows], origins.recurrent_bias[rows], steps.recurrent_bias[rows]
            learn_bias(bias, origin, step, d, decay, scale)
