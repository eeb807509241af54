"""Training and scoring on a GPU: the numbers are those of a CPU but for rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from charrnn.config import CELLS
from charrnn.counters import weight_mask
from charrnn.evaluation.scoring import evaluate
from charrnn.events import Evaluated, Finished, Progress
from charrnn.hardware import select_precision
from charrnn.model.file import load_model
from charrnn.model.gradients import Workers, autograd_window
from charrnn.model.network import CharRNN
from charrnn.training.plan import Environment
from tests.conftest import plan_again, relative_error, run_through, small_plan, with_cell

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda:0"
BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2}


def on_gpu(plan, precision="float32"):
    """The plan for the first GPU."""
    return replace(plan, environment=Environment(DEVICE, threads=1, precision=precision))


def losses(events):
    """The losses in a run's events, with their steps."""
    kinds = (Progress, Evaluated, Finished)
    return [(event.event, event.step, event.nats_per_char) for event in events if isinstance(event, kinds)]


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 products without TF32, for the comparison."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_a_run_learns_what_it_learns_on_a_cpu(tmp_path, corpus, cell, precision):
    """The losses agree step by step, closely in float32 and roughly in bfloat16."""
    expected = losses(run_through(with_cell(small_plan(tmp_path / "cpu", corpus), cell, weight_drop=0.2)))
    plan = with_cell(small_plan(tmp_path / "gpu", corpus), cell, weight_drop=0.2)
    found = losses(run_through(on_gpu(plan, precision)))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=BOUNDS[precision])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_gradients_are_those_of_a_cpu(corpus, tmp_path, cell, precision):
    """The window has many characters and drops outputs and recurrent weights."""
    config = with_cell(small_plan(tmp_path, corpus), cell).task.model
    generator = torch.Generator().manual_seed(1)
    x, targets = torch.randint(config.vocab_size, (2, 64, 256), generator=generator)
    masks = [(torch.rand(256, config.hidden_size, generator=generator) < 0.7) / 0.7 for _ in range(2)]
    model = CharRNN(config, seed=2)
    shape = model.layers[0].weight_hh_l0.shape
    weight_masks = [weight_mask(0.3, seed=1, step=0, layer=layer, shape=shape) for layer in range(2)]
    with Workers(model, num_workers=2, precision="float32") as workers:
        expected = workers.compute(x, targets, model.initial_state(256), masks, weight_masks)
    model = CharRNN(config, seed=2).to(DEVICE)
    state = model.initial_state(256)
    with Workers(model, num_workers=1, precision=precision) as workers:
        arguments = x.to(DEVICE), targets.to(DEVICE), state, [mask.to(DEVICE) for mask in masks]
        found = workers.compute(*arguments, weight_masks)
    assert relative_error(found.gradient.cpu(), expected.gradient) < BOUNDS[precision]
    assert found.nats == pytest.approx(expected.nats, rel=BOUNDS[precision])


def test_a_stopped_run_resumes(tmp_path, corpus):
    """It ends with the score of an uninterrupted run but for rounding."""
    undisturbed = losses(run_through(on_gpu(small_plan(tmp_path / "a", corpus))))
    plan = on_gpu(small_plan(tmp_path / "b", corpus))
    run_through(plan, stop_after=20)
    resumed = losses(run_through(plan_again(plan)))
    assert resumed[-1][:2] == undisturbed[-1][:2]
    assert resumed[-1][2] == pytest.approx(undisturbed[-1][2], abs=1e-3)


def test_scores_are_those_of_a_cpu(tmp_path, corpus):
    """They are computed in float32."""
    plan = small_plan(tmp_path, corpus)
    run_through(plan)
    file = load_model(plan.run.model_path)
    model = CharRNN.from_arrays(file.config, file.tensors)
    here = evaluate(model.reader(threads=2), corpus.valid_ids, context=corpus.train_ids)
    there = evaluate(model.to(DEVICE).reader(threads=2), corpus.valid_ids, context=corpus.train_ids)
    assert there.nats_per_char == pytest.approx(here.nats_per_char, abs=1e-4)


def test_resets_are_those_of_a_cpu(tmp_path, corpus):
    """A lane's state is set to zeros before the reset character."""
    config = replace(small_plan(tmp_path, corpus).task.model, reset_id=3)
    x, targets = torch.randint(config.vocab_size, (2, 12, 5), generator=torch.Generator().manual_seed(1))
    model = CharRNN(config, seed=2)
    expected = autograd_window(model, x, targets, model.initial_state(5))
    model = model.to(DEVICE)
    found = autograd_window(model, x.to(DEVICE), targets.to(DEVICE), model.initial_state(5))
    assert relative_error(found.gradient.cpu(), expected.gradient) < BOUNDS["float32"]


def test_the_precision_is_one_that_the_gpu_has():
    """float32 is chosen only if it is asked for, or if the GPU is too old for bfloat16."""
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    assert select_precision("auto", torch.device("cuda")) == ("bfloat16" if fast else "float32")
    assert select_precision("float32", torch.device("cuda")) == "float32"
