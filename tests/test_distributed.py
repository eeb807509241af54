"""Several processes do what one does: the same losses, one set of files, one message for what goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charrnn import distributed
from charrnn.config import ModelConfig
from charrnn.distributed import SINGLE, Ranks
from charrnn.errors import ResourceError, UsageError
from charrnn.evaluation.scoring import predict
from charrnn.model.file import load_model
from charrnn.model.network import CharRNN
from charrnn.training.plan import make_plan
from tests import ranks as program
from tests.conftest import digests, make_corpus, make_text, plan_again

ROOT = Path(__file__).parent.parent
TRAIN = ["--hidden-size", "16", "--num-layers", "2", "--batch-size", "9", "--seq-len", "16", "--no-mix"]
TRAIN += ["--precision", "float32", "--threads", "1", "--seed", "1"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def together(size, task, folder):
    """Run a task in so many ranks; what each found out."""
    folder.mkdir(exist_ok=True, parents=True)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    common |= {"LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", task, str(folder)],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ends = [(process.communicate(timeout=240)[1], process.returncode) for process in processes]
    expected = [0] * size if task != "lost" else [*[0] * (size - 1), 3]
    assert [code for _, code in ends] == expected, ends
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size) if expected[rank] == 0]


def assert_alike(told, expected, *, within=1e-5):
    """The same events, and the same losses but for rounding."""
    assert [row[:2] for row in told] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in told], [row[2] for row in expected], atol=within)


def test_without_torchrun_a_process_is_alone(monkeypatch):
    """Nothing in the environment, or only some of it, as batch systems have."""
    assert Ranks.from_environment() == SINGLE
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Ranks.from_environment() == SINGLE
    assert SINGLE.is_first
    assert SINGLE.label == ""
    assert SINGLE.lanes(7) == slice(0, 7)


def test_who_a_process_is_stands_in_the_environment(monkeypatch):
    """As torchrun sets it, the second of two nodes with three processes each."""
    words = {"RANK": 4, "WORLD_SIZE": 6, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 3, "GROUP_RANK": 1}
    for name, value in words.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert Ranks.from_environment() == Ranks(4, 6, 1, 3, 1, 2)
    assert Ranks.from_environment().label == "rank 4: "
    for name, value in [("RANK", "6"), ("LOCAL_RANK", "x"), ("WORLD_SIZE", "-1")]:
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(UsageError, match="torchrun"):
                Ranks.from_environment()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_lanes_belong_to_one_rank_each(size):
    """All of them, and as evenly as they can be."""
    parts = [Ranks(rank, size).lanes(7) for rank in range(size)]
    assert [lane for part in parts for lane in range(7)[part]] == list(range(7))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_lanes_are_refused(plan):
    """A rank without a lane would have nothing to do."""
    given = {"batch_size": 2, "steps": 3}
    how = {"minutes": None, "device": "cpu", "threads": 1}
    make_plan(plan.run, plan.corpus, plan.corpus_config, given, **how, ranks=Ranks(0, 2))
    with pytest.raises(UsageError, match="3 processes for 2 lanes"):
        make_plan(plan.run, plan.corpus, plan.corpus_config, given, **how, ranks=Ranks(0, 3))


def test_the_cores_of_all_ranks_count_for_the_recipe(plan):
    """Two ranks with a core each plan for what one process with two would."""
    how = {"minutes": 5.0, "device": "cpu"}
    one = make_plan(plan.run, plan.corpus, plan.corpus_config, {}, threads=4, **how)
    four = make_plan(plan.run, plan.corpus, plan.corpus_config, {}, threads=1, ranks=Ranks(2, 4), **how)
    assert (one.model, one.training) == (four.model, four.training)


@pytest.mark.parametrize("num_scored", [None, 7000])
@pytest.mark.parametrize("size", [2, 3, 40])
def test_ranks_score_what_one_process_scores(size, num_scored):
    """Character by character, in lanes that are the same ones."""
    corpus = make_corpus(make_text(20_000))
    sizes = ModelConfig(cell="gru", vocab_size=len(corpus.vocab), embedding_dim=8, hidden_size=16, num_layers=1)
    model = CharRNN(sizes, seed=1)
    how = {"context": corpus.ids[:1], "num_scored": num_scored, "num_top": 2}
    whole = predict(model, corpus.ids, **how)
    parts = [predict(model, corpus.ids, **how, ranks=Ranks(rank, size)) for rank in range(size)]
    for name in ("ids", "ranks", "top"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    np.testing.assert_allclose(np.concatenate([part.nats for part in parts]), whole.nats, atol=1e-5)


@pytest.mark.parametrize("name", ["cpu", "cuda:3"])
def test_a_device_that_is_named_is_that_one(name):
    """However many ranks there are."""
    assert distributed.device_for(Ranks(1, 2, 1, 2), name) == name


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    """The one of its number there; fewer than ranks are too few."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.device_for(SINGLE, "auto") == "auto"
    assert distributed.device_for(Ranks(3, 4, 1, 2), "auto") == "cuda:1"
    assert distributed.device_for(Ranks(2, 4, 0, 2), "cuda") == "cuda:0"
    with pytest.raises(ResourceError, match="4 processes for 2 CUDA devices"):
        distributed.device_for(Ranks(1, 4, 1, 4), "auto")


@pytest.mark.parametrize("size", [2, 4])
def test_what_ranks_tell_one_another(tmp_path, size):
    """WeightGradients, the first one's word, what all agree on, and what goes wrong in one."""
    found = together(size, "messages", tmp_path)
    last, total = size - 1, sum(range(size))
    for rank, word in enumerate(found):
        assert word["sums"] == [[[total] * 3] * 2, [size]]
        assert word["all_gather"] == [float(r) for r in range(size) for _ in range(9)[Ranks(r, size).lanes(9)]]
        assert (word["said"], word["spread"], word["agreed"]) == (100, [5.0], 7 + rank)
        assert word["order"] == (rank > 0)
        if rank:
            assert word["failed"][:2] == ["PeerError", 3]
            assert word["differing"][:2] == ["PeerError", 2]
    assert found[0]["failed"] == ["CharrnnError", 3, f"rank {last}: no such text"]
    assert found[0]["differing"][:2] == ["UsageError", 2]
    assert found[0]["differing"][2].startswith("--seed is 0 in rank 0 and 1 in rank 1; all need the same command")


def test_a_rank_that_is_gone_is_missed_by_all(tmp_path):
    """In one line, which says how to go on."""
    for word in together(3, "lost", tmp_path):
        assert word["error"][0] == "CharrnnError"
        assert word["error"][2].startswith("another process of this run is gone")
        assert "\n" not in word["error"][2]


@pytest.mark.parametrize("size", [2, 4])
def test_a_run_of_several_is_the_run_of_one(tmp_path, size):
    """All cells, uneven lanes, masks of outputs and of weights: the losses of each step, scores and weights."""
    alone = program.training(SINGLE, tmp_path / "alone")
    found = together(size, "training", tmp_path / "together")
    for cell, expected in alone.items():
        assert_alike(found[0][cell], expected)
        assert all(word[cell] == found[0][cell] for word in found)  # to the last bit
        one, several = (
            load_model(program.plan_in(tmp_path / where, cell, SINGLE).run.model_path).tensors
            for where in ("alone", "together")
        )
        for name, array in one.items():
            np.testing.assert_allclose(several[name], array, atol=1e-4, err_msg=f"{cell} {name}")


def test_equal_runs_of_as_many_are_equal_bytes(tmp_path):
    """In one sitting or two, the second begun with a signal to one of them."""
    plan = program.plan_in(tmp_path, "gru", SINGLE)
    together(2, "rest", tmp_path)
    expected = digests(plan)
    plan.run.clear()
    told = together(2, "sitting", tmp_path)
    assert [word["gru"][-1][:2] for word in told] == [["interrupted", 15]] * 2
    assert told[0]["gru"][-2][1] == 10  # one step after the signal came
    together(2, "rest", tmp_path)
    assert digests(plan) == expected


def test_what_is_not_finite_in_one_sends_all_back(tmp_path):
    """To the same state, and on with half the rate."""
    first, second = (word["gru"] for word in together(2, "diverging", tmp_path))
    assert first == second
    ((message, step, _),) = [row for row in first if "finite" in row[0]]
    assert "the loss is not finite" in message
    assert step < 10
    assert first[-1][:2] == ["finished", 24]


@pytest.mark.parametrize("sizes", [(2, 3), (3, 1), (1, 2)], ids=str)
def test_another_number_of_ranks_goes_on(tmp_path, sizes):
    """The lanes are shared anew; losses and scores are those of an uninterrupted run."""
    expected = program.rest(SINGLE, tmp_path / "alone")["gru"]
    first = run_with(sizes[0], "sitting", tmp_path / "moved")["gru"]
    second = run_with(sizes[1], "rest", tmp_path / "moved")["gru"]
    steps = first[-2][1]
    assert_alike(first[:-1], [row for row in expected if row[1] <= steps])
    assert_alike(second, [row for row in expected if row[1] > steps])


def run_with(size, task, folder):
    """The first rank's word, of one process or several."""
    return together(size, task, folder)[0] if size > 1 else program.TASKS[task](SINGLE, folder)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_know_the_score_of_the_whole(tmp_path, size):
    """Each reads a part of the text."""
    expected = program.scoring(SINGLE, tmp_path)
    for word in together(size, "scoring", tmp_path):
        assert word == pytest.approx(expected, abs=1e-5)


def test_a_plan_says_how_many_processes_it_is_for(plan):
    """A run that goes on in another number of them does so with a note."""
    program.trained(plan, stop_at=3)
    again = plan_again(replace(plan, ranks=Ranks(0, 2)))
    assert any("processes 1 before, 2 now" in note for note in again.notes)
    assert plan_again(plan).notes == ("going on from step 4",)


# the command itself, under torchrun


@pytest.fixture
def place(tmp_path):
    """A folder with a text."""
    (tmp_path / "made.txt").write_text(make_text(6000), encoding="utf-8")
    os.utime(tmp_path / "made.txt", (1e9, 1e9))
    return tmp_path


def torchrun(place, *words, size=2, options=("--standalone",), own=()):
    """Start the command in so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*launcher, "-m", "--", "charrnn", *words, *own],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def logged(place, run):
    """What a run's log says so far."""
    path = place / "checkpoints" / run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(happened, process):
    """Wait for something that a process does."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(process):
    """The processes that torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process.pid:
                words = dict(word.partition("=")[::2] for word in (folder / "environ").read_text().split("\0"))
                found[int(words["RANK"])] = int(folder.name)
        except (OSError, KeyError):
            continue
    return found


@posix
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
def test_a_killed_rank_is_started_again_and_the_run_ends_the_same(place):
    """With torchrun's own restarts: bit for bit, also where the command says --fresh."""
    words = ["train", "made.txt", *TRAIN, "--steps", "300"]
    undisturbed = torchrun(place, *words, "--run", "a")
    out, err = undisturbed.communicate(timeout=200)
    assert (undisturbed.returncode, out) == (0, "checkpoints/a/model.safetensors\n"), err
    killed = torchrun(
        place, *words, "--run", "b", "--fresh", "--save-every", "0", options=("--standalone", "--max-restarts", "2")
    )
    wait_until(lambda: len(logged(place, "b")) > 60, killed)
    os.kill(ranks_of(killed)[1], signal.SIGKILL)
    out, err = killed.communicate(timeout=200)
    assert killed.returncode == 0, err
    assert "another process of this run is gone" in err
    assert any(event["event"] == "resumed" and event["step"] > 20 for event in logged(place, "b"))
    models = [(place / "checkpoints" / run / "model.safetensors").read_bytes() for run in "ab"]
    assert models[0] == models[1]


@posix
def test_a_signal_to_torchrun_stops_all_after_saving(place):
    """At the same step; one process then ends the run."""
    words = ["train", "made.txt", *TRAIN, "--steps", "100000"]
    process = torchrun(place, *words)
    wait_until(lambda: len(logged(place, "made")) > 20, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert "stopped after step" in err
    step = int(err.partition("stopped after step ")[2].partition(";")[0])
    assert (place / "checkpoints" / "made" / f"state-{step}.safetensors").exists()


@posix
def test_two_launchers_make_one_run(place):
    """Two nodes, which are one machine here, and settings that differ between them, which are refused."""
    port = free_port()
    options = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "x"]
    nodes = [torchrun(place, "train", "made.txt", *TRAIN, "--steps", "20", size=1, options=options) for _ in range(2)]
    ends = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert sorted(out for out, _ in ends) == ["", "checkpoints/made/model.safetensors\n"]
    seeds = [["--seed", str(number)] for number in (4, 5)]
    differing = [
        torchrun(place, "train", "made.txt", *TRAIN, "--steps", "20", "--fresh", size=1, options=options, own=seed)
        for seed in seeds
    ]
    ends = [node.communicate(timeout=200) for node in differing]
    assert all(node.returncode for node in differing)
    told = [line for _, err in ends for line in err.splitlines() if line.startswith("charrnn: ")]
    assert len(told) == 1
    assert "--seed is" in told[0]
    assert "in rank 0 and" in told[0]
    assert logged(place, "made")[-1]["event"] == "finished"  # nothing was forgotten


@pytest.mark.parametrize("command", ["sample", "eval", "info"])
def test_other_commands_are_for_one_process(place, command):
    """Which is said before anything else."""
    words = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "charrnn", command],
        cwd=place,
        env={**os.environ, **words, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"start charrnn {command} alone" in done.stderr
