"""What is dropped in a step, and the update of the weights by its gradient.

Letters: B lanes of this rank, H hidden size, P parameters.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from charrnn.config import TrainConfig
from charrnn.counters import WeightMask, dropout_mask, lane_resets, weight_mask
from charrnn.data.batches import ALL_LANES
from charrnn.errors import DivergenceError
from charrnn.model.gradients import recurrent_weights
from charrnn.training.state import MOMENTS, TrainState

RESET_SHARE = 0.01  # of the lanes, in each step. Source: Melis et al. 2018
BETAS, EPSILON = (0.9, 0.99), 1e-8  # AdamW's


def reset_lanes(state: TrainState, config: TrainConfig, lanes: slice = ALL_LANES) -> None:
    """Set the state of a few of these lanes to zeros before a step.

    Texts are read from a state of zeros, but a run of one pass starts each lane only once. A network that has seldom
    read from there can get stuck in states in which it predicts nothing sensible.
    """
    chosen = lane_resets(RESET_SHARE, seed=config.seed, step=state.step, lanes=range(config.batch_size)[lanes])
    if chosen.any():
        is_kept = torch.from_numpy(~chosen).to(state.hidden[0].device)[:, None]
        state.hidden = tuple(part * is_kept for part in state.hidden)


def dropout_masks(state: TrainState, config: TrainConfig, lanes: slice = ALL_LANES) -> list[Tensor] | None:
    """Draw one mask (B, H) per layer for the current window of these lanes; None without dropout."""
    if config.dropout == 0.0:
        return None
    sizes, device = state.model.config, state.model.head.weight.device
    masks = (
        dropout_mask(
            config.dropout,
            seed=config.seed,
            step=state.step,
            layer=layer,
            lanes=range(config.batch_size)[lanes],
            hidden_size=sizes.hidden_size,
        )
        for layer in range(sizes.num_layers)
    )
    return [torch.from_numpy(mask).to(device) for mask in masks]


def weight_masks(state: TrainState, config: TrainConfig) -> list[WeightMask]:
    """Draw one mask per layer's recurrent weight for the current window; none without weight drop."""
    if config.weight_drop == 0.0:
        return []
    return [
        weight_mask(config.weight_drop, seed=config.seed, step=state.step, layer=layer, shape=weight.shape)
        for layer, weight in enumerate(recurrent_weights(state.model).values())
    ]


def apply_gradient(
    state: TrainState, gradient: Tensor, nats: float, num_targets: int, *, rate: float, grad_clip: float
) -> float:
    """Turn the gradient (P,) of a sum over num_targets into the mean's, clip its norm and take an AdamW step.

    Returns the norm before clipping.

    Raises DivergenceError, with nothing changed, if the loss or the norm is not finite.
    """
    norm = float(gradient.norm().double() / num_targets)
    for value, name in ((nats, "loss"), (norm, "gradient")):
        if not math.isfinite(value):
            raise DivergenceError(f"training diverged at step {state.step}: the {name} is not finite")
    gradient *= min(grad_clip / (norm + 1e-12), 1.0) / num_targets
    sizes = [parameter.numel() for parameter in state.model.parameters()]
    _adamw_step(state, torch.split(gradient, sizes), rate)
    return norm


@torch.no_grad()
def _adamw_step(state: TrainState, gradients: Sequence[Tensor], rate: float) -> None:
    """Update the weights with AdamW; weights decay, biases don't. gradients: flat, one for each parameter.

    This calls PyTorch's function: constructing torch.optim.AdamW imports torch._dynamo, which takes two seconds.
    Source: Loshchilov & Hutter 2019.
    """
    parameters: list[Tensor] = list(state.model.parameters())
    if not state.moments:
        state.moments = {moment: [torch.zeros_like(parameter) for parameter in parameters] for moment in MOMENTS}
    for dim, weight_decay in ((2, state.weight_decay), (1, 0.0)):
        chosen = [index for index, parameter in enumerate(parameters) if parameter.dim() == dim]
        adamw(
            [parameters[index] for index in chosen],
            [gradients[index].view_as(parameters[index]) for index in chosen],
            [state.moments["exp_avg"][index] for index in chosen],
            [state.moments["exp_avg_sq"][index] for index in chosen],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(float(state.step), device=parameters[0].device) for _ in chosen],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=EPSILON,
            maximize=False,
        )
