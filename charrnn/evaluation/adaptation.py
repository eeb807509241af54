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
from torch import Tensor

from charrnn.config import ADAPT_RATE
from charrnn.data.batches import IGNORE_INDEX, Cursor, next_step, read_window
from charrnn.data.vocab import Ids
from charrnn.errors import DivergenceError
from charrnn.evaluation.scores import Evaluation
from charrnn.evaluation.scoring import WARM_UP, count_experts, fill_predictions, new_predictions, read_context
from charrnn.evaluation.summary import Totals
from charrnn.kernels.ngrams import Mixture, no_mixture
from charrnn.model.gradients import Workers
from charrnn.model.layers import is_fused
from charrnn.model.learner import AutogradLearner, KernelLearner, LearningRule
from charrnn.model.network import CharRNN
from charrnn.model.ngrams import find_contexts

DECAY = 1e-3  # fraction of the distance to the trained weights that each step goes back
SEQ_LEN = 32  # T
_NUM_LANES, _NUM_WINDOWS = 32, 25  # of training text, on which gradients are measured
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
    contexts = find_contexts(mixture, ids, context=context, boundary_ids=model.config.boundary_ids)
    model = copy.deepcopy(model)
    inputs = np.concatenate([context[-1:], ids[:-1]]).astype(np.int64)  # inputs[i] predicts ids[i]
    targets = ids.astype(np.int64)
    targets[ids == rare_id] = IGNORE_INDEX
    rule = LearningRule(model, _measure_steps(model, train, rate), DECAY)
    state, totals = read_context(model.reader(threads=1), context[-(WARM_UP + 1) : -1]), Totals(rare_id)
    with (KernelLearner if is_fused(model) else AutogradLearner)(model, state, rule) as learner:
        for start in range(0, len(ids), SEQ_LEN):
            rows = slice(start, start + SEQ_LEN)
            found = new_predictions(ids[rows].astype(np.int64), num_top=0, num_experts=count_experts(mixture))
            fill_predictions(learner, learner.read(inputs[rows]), mixture, contexts[rows], found)
            totals.add(found)
            num_targets = int((targets[rows] != IGNORE_INDEX).sum())
            if rate > 0 and num_targets > 0:
                learner.learn(targets[rows], num_targets)
    if not math.isfinite(totals.nats):
        raise DivergenceError("the adapting model diverged; use a smaller --adapt-rate")
    return Evaluation(totals.nats, int(totals.num_chars), {})


def _measure_steps(model: CharRNN, train: Ids, rate: float) -> list[Tensor]:
    """Return each weight's step for a gradient of one: the rate over the usual size of its gradient in one lane."""
    if rate == 0:  # nothing will learn, so nothing is measured
        return [torch.zeros_like(parameter) for parameter in model.parameters()]
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
    steps = torch.split(rate / (usual + _DAMPING * usual.mean() + 1e-12), [p.numel() for p in model.parameters()])
    return [part.view_as(parameter) for part, parameter in zip(steps, model.parameters(), strict=True)]
