"""Dynamic evaluation: the model keeps learning from the text it has just been scored on.

Each window is scored before the weights learn from it, so nothing is predicted by what it
predicts; but the figure is another one than that of the trained weights, which stay as they are.
Source: Krause et al. 2018, "Dynamic evaluation of neural sequence models": steps divided by the
root mean square that each weight's gradient has on the training text, and a pull back to the
trained weights.

Letters: N characters, T steps in a window, P parameters.
"""

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.config import ADAPT_RATE
from charrnn.data.batches import IGNORE_INDEX, Cursor, next_step, read_window
from charrnn.data.vocab import Ids
from charrnn.errors import DivergenceError
from charrnn.evaluation.scores import Evaluation
from charrnn.evaluation.scoring import WARM_UP, empty_predictions, predict_each, state_after
from charrnn.kernels.ngrams import Mixture, nothing
from charrnn.model.gradients import Workers
from charrnn.model.layers import HiddenState, is_fused
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import contexts_of

DECAY = 1e-3  # share of the way back to the trained weights that each step goes
SEQ_LEN = 32  # T
_LANES, _WINDOWS = 32, 50  # of training text, in which gradients are measured
_LEAST = 0.1  # of the mean root mean square, added to each: what hardly ever moves would leap


def evaluate_adapting(
    model: CharRNN,
    ids: Ids,
    *,
    context: Ids,
    train: Ids,
    rare: int | None = None,
    rate: float = ADAPT_RATE,
    decay: float = DECAY,
    mixture: Mixture | None = None,
) -> Evaluation:
    """Score ids (N,) in sequence, learning from each window once it is scored; the model itself stays as it is.

    context: as for evaluate; train: what the model was trained on, two characters at least.
    rare: the id of characters that are read but not scored. mixture: n-grams that share in the
    predictions; they stay as they are, and so do their weights. Raises DivergenceError where the
    rate is too large.
    """
    mixture = mixture or nothing()
    contexts = contexts_of(mixture, ids, context=context)
    model = copy.deepcopy(model)
    context = context[-(WARM_UP + 1) :]
    inputs = np.concatenate([context, ids[:-1]]).astype(np.int64)[len(context) - 1 :]  # inputs[i] predicts ids[i]
    targets = ids.astype(np.int64)
    targets[ids == rare] = IGNORE_INDEX
    state = state_after(model, context[:-1])
    nats, num_chars = 0.0, 0
    with Workers(model, num_workers=1, precision="float32") as workers:
        steps = [] if rate == 0 else _steps(workers, train, rate)
        trained = [weight.detach().clone() for weight in model.parameters()]
        for start in range(0, len(ids), SEQ_LEN):
            rows = slice(start, start + SEQ_LEN)
            x, target = (_column(model, row[rows]) for row in (inputs, targets))
            if len(mixture.weights) > 0:
                nats += _mixed_nats(model, x, state, ids[rows], mixture, contexts[rows], targets[rows] != IGNORE_INDEX)
            found = workers.compute(x, target, state, None)
            state, num_scored = found.state, int((targets[rows] != IGNORE_INDEX).sum())
            nats, num_chars = nats + float(found.nats) * (len(mixture.weights) == 0), num_chars + num_scored
            if steps and num_scored > 0:
                _learn(model, trained, _split(model, found.gradient / num_scored), steps, decay)
    if not math.isfinite(nats):
        raise DivergenceError("adapting diverged; take a smaller --adapt-rate")
    return Evaluation(nats, num_chars, {})


@torch.inference_mode()
def _mixed_nats(
    model: CharRNN,
    x: Tensor,
    state: HiddenState,
    ids: Ids,
    mixture: Mixture,
    contexts: NDArray[np.int32],
    scored: NDArray[np.bool_],
) -> float:
    """What the scored ones of ids (T,), which come after x (T, 1), cost the network with its n-grams."""
    packed = model.pack() if is_fused(model) else None
    h, _ = model.features(x, state, packed=packed)
    found = empty_predictions(ids[:, None].astype(np.int64), 0, 2)
    predict_each(model, packed, h, mixture, contexts[:, None], found)
    return float(found.nats[scored].sum())


@torch.no_grad()
def _learn(model: CharRNN, trained: list[Tensor], gradients: list[Tensor], steps: list[Tensor], decay: float) -> None:
    for weight, origin, gradient, step in zip(model.parameters(), trained, gradients, steps, strict=True):
        weight.lerp_(origin, decay).addcmul_(gradient, step, value=-1)


def _steps(workers: Workers, train: Ids, rate: float) -> list[Tensor]:
    """How far each weight goes for a gradient of one: the rate over what its gradient usually is, in one lane."""
    model, cursor = workers.model, Cursor()
    seq_len = min(SEQ_LEN, len(train) - 1)
    num_lanes = max(1, min(_LANES, len(train) // (seq_len + 1)))
    state = model.initial_state(num_lanes)
    squares = torch.zeros(model.config.num_parameters, device=model.head.weight.device)
    for _ in range(_WINDOWS):
        step = next_step(len(train), cursor, batch_size=num_lanes, seq_len=seq_len, seed=0)
        if step.starts_pass:
            state = model.initial_state(num_lanes)
        x, targets = (torch.from_numpy(part).to(squares.device) for part in read_window(train, step))
        found = workers.compute(x, targets, state, None)
        cursor, state = step.after, found.state
        squares += (found.gradient / step.num_targets) ** 2 * num_lanes  # noise of lanes that know nothing of another
    usual = (squares / _WINDOWS).sqrt()
    return _split(model, rate / (usual + _LEAST * usual.mean() + 1e-12))


def _split(model: CharRNN, flat: Tensor) -> list[Tensor]:
    """Numbers (P,) as the model's parameters are shaped."""
    parts: tuple[Tensor, ...] = torch.split(flat, [weight.numel() for weight in model.parameters()])
    return [part.view_as(weight) for part, weight in zip(parts, model.parameters(), strict=True)]


def _column(model: CharRNN, row: NDArray[np.int64]) -> Tensor:
    """Characters (T,) as a tensor of one lane, (T, 1)."""
    return torch.from_numpy(row[:, None]).to(model.head.weight.device)
