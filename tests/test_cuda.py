"""On a GPU: the losses of a CPU but for rounding, in each precision, and runs that go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from charrnn.feed import Feed
from charrnn.recording import Recording

from charrnn.config import CELLS
from charrnn.evaluation.scoring import evaluate
from charrnn.events import Evaluated, Finished, Progress
from charrnn.hardware import select_precision
from charrnn.model.file import load_model
from charrnn.model.gradients import Workers, window_gradient
from charrnn.model.network import CharRNN
from charrnn.sampling.sampler import Sampler
from charrnn.training.loop import step_of
from charrnn.training.recipe import StopRequest
from tests.conftest import plan_again, relative_error, run_through, small_plan, with_cell

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


def on_gpu(plan, **changes):
    """The plan for the first GPU."""
    return replace(plan, device="cuda:0", threads=1, **changes)


def losses(events):
    """What was told of losses."""
    kinds = (Progress, Evaluated, Finished)
    return [(event.event, event.step, event.nats_per_char) for event in events if isinstance(event, kinds)]


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 as it is, for the comparison."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_a_run_learns_what_a_cpu_learns(tmp_path, corpus, cell, precision):
    """Step by step in float32; in the others the scores are near."""
    plan = with_cell(small_plan(tmp_path / "cpu", corpus), cell, weight_drop=0.2)
    expected = losses(run_through(replace(plan, precision="float32")))
    there = with_cell(small_plan(tmp_path / "gpu", corpus), cell, weight_drop=0.2)
    found = losses(run_through(on_gpu(there, precision=precision)))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], atol=BOUNDS[precision])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_gradients_are_those_of_a_cpu(corpus, tmp_path, cell, precision):
    """Of a window of many characters, in float16 of more than its sums have room for."""
    plan = with_cell(small_plan(tmp_path, corpus), cell)
    model = CharRNN(plan.model, seed=2)
    generator = torch.Generator().manual_seed(1)
    x, targets = torch.randint(plan.model.vocab_size, (2, 64, 256), generator=generator)
    state = model.initial_state(256)
    expected = window_gradient(model, x, targets, state, None)
    there = CharRNN(plan.model, seed=2).cuda()
    found = window_gradient(there, x.cuda(), targets.cuda(), there.initial_state(256), None, precision=precision)
    assert relative_error(found.gradient.cpu(), expected.gradient) < BOUNDS[precision]
    assert float(found.nats) == pytest.approx(float(expected.nats), rel=BOUNDS[precision])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_a_window_can_be_replayed(corpus, tmp_path, cell, precision):
    """With masks, for other inputs than it was recorded with, and after the weights have changed."""
    plan = with_cell(small_plan(tmp_path, corpus), cell)
    model = CharRNN(plan.model, seed=2).cuda()
    generator = torch.Generator("cuda").manual_seed(1)

    def inputs():
        window = torch.randint(plan.model.vocab_size, (2, 16, 8), generator=generator, device="cuda")
        state = [torch.rand(part.shape, generator=generator, device="cuda") for part in model.initial_state(8)]
        sizes = 2, 8, plan.model.hidden_size
        return *window, *state, *torch.rand(sizes, generator=generator, device="cuda")

    with Workers(model, num_workers=1, precision=precision) as workers:
        replay = Recording(workers._of_one, inputs())
        for _ in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
            given = inputs()
            found = [tensor.clone() for tensor in replay(*given)]
            for one, other in zip(found, workers._of_one(*given), strict=True):
                assert relative_error(one.cpu(), other.cpu()) < 1e-3


def test_a_stopped_run_goes_on(tmp_path, corpus):
    """From its state, to the score of an undisturbed one but for rounding."""
    undisturbed = losses(run_through(on_gpu(small_plan(tmp_path / "a", corpus))))
    plan = on_gpu(small_plan(tmp_path / "b", corpus))
    run_through(plan, stop_after=20)
    again = losses(run_through(plan_again(plan), stop=StopRequest()))
    assert again[-1][:2] == undisturbed[-1][:2]
    assert again[-1][2] == pytest.approx(undisturbed[-1][2], abs=1e-3)


def test_the_text_lies_in_its_memory(tmp_path, corpus):
    """And windows come out of it as the host reads them."""
    from charrnn.training.loop import starting_state

    plan = on_gpu(small_plan(tmp_path, corpus))
    state = starting_state(plan, torch.device("cuda:0"))
    feed, host = Feed(plan.learnt, torch.device("cuda:0")), Feed(plan.learnt, torch.device("cpu"))
    step = step_of(state, plan)
    for found, expected in zip(feed.window(step), host.window(step), strict=True):
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected)


def test_scores_are_those_of_a_cpu(tmp_path, corpus):
    """In float32."""
    plan = small_plan(tmp_path, corpus)
    run_through(plan)
    file = load_model(plan.run.model_path)
    model = CharRNN.from_arrays(file.config, file.tensors)
    here = evaluate(model, corpus.valid_ids, context=corpus.train_ids)
    there = evaluate(model.cuda(), corpus.valid_ids, context=corpus.train_ids)
    assert there.nats_per_char == pytest.approx(here.nats_per_char, abs=1e-4)


def test_the_precision_is_one_that_it_has():
    """Not float32 unless that is asked for."""
    assert select_precision("auto", torch.device("cuda")) in ("bfloat16", "float16")
    assert select_precision("float32", torch.device("cuda")) == "float32"


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_text_is_drawn_on_it(tmp_path, corpus, precision):
    """The same in float32; in another precision one of the length that is asked for."""
    plan = small_plan(tmp_path, corpus)
    run_through(plan)
    settings = {"length": 100, "seed": 3, "num_samples": 20}
    texts = [
        ["".join(stream) for stream in Sampler.load(plan.run.model_path, **how).streams("ba", **settings)]
        for how in ({}, {"device": "cuda", "precision": precision})
    ]
    assert all(len(text) == 100 for text in texts[1])
    assert precision == "auto" or texts[0] == texts[1]
