"""Dynamic evaluation: a copy of the model keeps learning from the text that it is scored on.

Each window is scored before the copy learns from it, so no character helps to predict itself.
The score describes a model that changes, not the trained weights, which stay as they are.
Source: Krause et al. 2018, "Dynamic evaluation of neural sequence models": steps are divided by
the root mean square of each weight's gradient on the training text, and each step also pulls the
weights back towards the trained ones.

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
from charrnn.evaluation.scoring import WARM_UP, fill_predictions, new_predictions, read_context
from charrnn.kernels.ngrams import Mixture, no_mixture
from charrnn.model.gradients import Workers
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import find_contexts

DECAY = 1e-3  # fraction of the distance to the trained weights that each step goes back
SEQ_LEN = 32  # T
_NUM_LANES, _NUM_WINDOWS = 32, 50  # of training text, on which gradients are measured
_NUM_WORKERS = 2  # that measure them; not the number of threads, on which no score may depend
_DAMPING = 0.1  # times the mean of all root mean squares is added to each, or weights that hardly ever move would jump


def evaluate_adapting(
    model: CharRNN,
    ids: Ids,
    *,
    context: Ids,
    train: Ids,
    rare_id: int | None = None,
    rate: float = ADAPT_RATE,
    mixture: Mixture | None = None,
) -> Evaluation:
    """Score ids (N,) strictly in sequence, learning from each window after it is scored.

    context: as for scoring.predict. train: the training text, at least two characters. rare_id: the id of
    characters that are fed but not scored. rate: the learning rate. mixture: n-grams to mix with
    the network; they and their weights do not learn.
    Raises DivergenceError if the rate is too large.
    """
    mixture = mixture or no_mixture()
    contexts = find_contexts(mixture, ids, context=context, starts=model.config.context_starts)
    model = copy.deepcopy(model)
    context = context[-(WARM_UP + 1) :]
    inputs = np.concatenate([context, ids[:-1]]).astype(np.int64)[len(context) - 1 :]  # inputs[i] predicts ids[i]
    targets = ids.astype(np.int64)
    targets[ids == rare_id] = IGNORE_INDEX
    state = read_context(model, context[:-1])
    nats, num_chars = 0.0, 0
    steps = [] if rate == 0 else _measure_steps(model, train, rate)
    with Workers(model, num_workers=1, precision="float32") as workers:
        trained = [weight.detach().clone() for weight in model.parameters()]
        for start in range(0, len(ids), SEQ_LEN):
            rows = slice(start, start + SEQ_LEN)
            x, is_scored = _column(model, inputs[rows]), targets[rows] != IGNORE_INDEX
            result = workers.compute(x, _column(model, targets[rows]), state)
            if len(mixture.weights) > 0:
                mixed_nats = _mixed_nats(workers, result.features, ids[rows], mixture, contexts[rows])
                nats += float(mixed_nats[is_scored].sum())
            else:
                nats += result.nats
            state, num_scored = result.state, int(is_scored.sum())
            num_chars += num_scored
            if steps and num_scored > 0:
                _learn(model, trained, _split(model, result.gradient), steps, num_scored)
    if not math.isfinite(nats):
        raise DivergenceError("the adapting model diverged; use a smaller --adapt-rate")
    return Evaluation(nats, num_chars, {})


@torch.inference_mode()
def _mixed_nats(
    workers: Workers, features: tuple[Tensor, ...], ids: Ids, mixture: Mixture, contexts: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the nats (T,) of ids (T,) under the network, which had the features (T, 1, H), mixed with its n-grams."""
    found = new_predictions(ids[:, None].astype(np.int64), num_top=0, num_experts=2)
    fill_predictions(workers.model, workers.packed, torch.cat(features, dim=1), mixture, contexts[:, None], found)
    return found.nats[:, 0]


@torch.no_grad()
def _learn(
    model: CharRNN, trained: list[Tensor], gradients: list[Tensor], steps: list[Tensor], num_scored: int
) -> None:
    """Update the weights in place: back towards the trained ones, then down the gradients of so many characters."""
    for weight, origin, gradient, step in zip(model.parameters(), trained, gradients, steps, strict=True):
        weight.lerp_(origin, DECAY).addcmul_(gradient, step, value=-1 / num_scored)


def _measure_steps(model: CharRNN, train: Ids, rate: float) -> list[Tensor]:
    """Return each weight's step for a gradient of one: the rate over the usual size of its gradient in one lane."""
    cursor = Cursor()
    seq_len = min(SEQ_LEN, len(train) - 1)
    num_lanes = max(1, min(_NUM_LANES, len(train) // (seq_len + 1)))
    state = model.initial_state(num_lanes)
    squares = torch.zeros(model.config.num_parameters, device=model.head.weight.device)
    with Workers(model, num_workers=min(_NUM_WORKERS, num_lanes), precision="float32") as workers:
        for _ in range(_NUM_WINDOWS):
            step = next_step(len(train), cursor, batch_size=num_lanes, seq_len=seq_len, seed=0)
            if step.starts_pass:
                state = model.initial_state(num_lanes)
            x, targets = (torch.from_numpy(part).to(squares.device) for part in read_window(train, step))
            result = workers.compute(x, targets, state)
            cursor, state = step.next_cursor, result.state
            # the mean over independent lanes has a variance smaller by their number
            squares += (result.gradient / step.num_targets) ** 2 * num_lanes
    usual = (squares / _NUM_WINDOWS).sqrt()
    return _split(model, rate / (usual + _DAMPING * usual.mean() + 1e-12))


def _split(model: CharRNN, flat: Tensor) -> list[Tensor]:
    """Split numbers (P,) into tensors of the parameters' shapes."""
    parts: tuple[Tensor, ...] = torch.split(flat, [weight.numel() for weight in model.parameters()])
    return [part.view_as(weight) for part, weight in zip(parts, model.parameters(), strict=True)]


def _column(model: CharRNN, row: NDArray[np.int64]) -> Tensor:
    """Return characters (T,) as a tensor of one lane, (T, 1)."""
    return torch.from_numpy(row[:, None]).to(model.head.weight.device)
