"""Several processes give the results of one: the same losses, one set of files, one message for each problem."""

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.distributed

from charrnn import distributed
from charrnn.cli.main import main
from charrnn.config import ModelConfig
from charrnn.distributed import SINGLE, Ranks, process_group
from charrnn.errors import CharrnnError, InputError, PeerError, UsageError
from charrnn.evaluation.scoring import predict
from charrnn.model.file import load_model
from charrnn.model.network import CharRNN
from charrnn.training.planning import plan_new_run
from tests import ranks as program
from tests.conftest import digests, make_corpus, make_new_plan, make_text, plan_again, with_environment

ROOT = Path(__file__).parent.parent
TRAIN = ["--hidden-size", "16", "--num-layers", "2", "--batch-size", "9", "--seq-len", "16", "--no-mix"]
TRAIN += ["--precision", "float32", "--threads", "1", "--seed", "1", "-q"]
COMMAND = ["train", "made.txt", *TRAIN, "--steps", "100"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


def free_port():
    """Return a port of this machine that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_ranks(size, *args, cwd=ROOT):
    """Start a Python module in several processes as torchrun does."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    common |= {"LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, args)],
            cwd=cwd,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def wait_for(processes):
    """Wait for processes; return what each printed on stdout and stderr, and the exit codes."""
    printed = [process.communicate(timeout=240) for process in processes]
    return printed, [process.returncode for process in processes]


def run_tasks(size, folder, *tasks, last_code=0):
    """Run tasks of tests/ranks.py in several processes; return the results of those that exit with 0."""
    folder.mkdir(exist_ok=True, parents=True)
    printed, codes = wait_for(start_ranks(size, "tests.ranks", folder, *tasks))
    assert codes == [*[0] * (size - 1), last_code], printed
    if (folder / "command.json").exists():
        assert [out for out, _ in printed] == ["checkpoints/made/model.safetensors\n", *[""] * (size - 1)]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size) if codes[rank] == 0]


def assert_same_losses(losses, expected, *, within=1e-5):
    """Compare events and, up to rounding, their losses."""
    assert [row[:2] for row in losses] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in losses], [row[2] for row in expected], atol=within)


def assert_same_models(folders, cell):
    """Compare the models that two folders contain, up to rounding."""
    one, other = (load_model(program.make_plan(folder, cell, SINGLE).run.model_path).tensors for folder in folders)
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=1e-4, err_msg=f"{cell} {name}")


# the environment


def test_without_torchrun_a_process_is_single(monkeypatch):
    """Without torchrun's variables, or with only some of them, as in batch systems."""
    assert Ranks.from_environment() == SINGLE
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Ranks.from_environment() == SINGLE
    assert SINGLE.is_first
    assert SINGLE.label == ""
    assert SINGLE.lanes(7) == slice(0, 7)


def test_a_single_process_exchanges_nothing():
    """It gets its own values back."""
    tensor = torch.ones(1, 3, 2)
    SINGLE.all_reduce(tensor)
    SINGLE.broadcast([tensor])
    assert SINGLE.all_gather(tensor, 3) is tensor
    assert SINGLE.broadcast_number(5) == 5
    assert SINGLE.agree("fine", lambda: 7) == 7
    with SINGLE.local_rank_first("work"), process_group(SINGLE, device="cuda") as ranks:
        assert ranks is SINGLE
    assert tensor.tolist() == torch.ones(1, 3, 2).tolist()


def test_ranks_are_read_from_the_environment(monkeypatch):
    """The second of two nodes with three processes each; invalid values are refused."""
    values = {"RANK": 4, "WORLD_SIZE": 6, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 3, "GROUP_RANK": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert Ranks.from_environment() == Ranks(4, 6, 1, 3, 1, 2)
    assert Ranks.from_environment().label == "rank 4: "
    for name, value in [("RANK", "6"), ("LOCAL_RANK", "x"), ("WORLD_SIZE", "-1")]:
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(UsageError, match="torchrun"):
                Ranks.from_environment()


@pytest.mark.parametrize("command", ["sample", "eval", "info"])
def test_other_commands_refuse_several_processes(monkeypatch, capsys, command):
    """Before anything else."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["charrnn", command])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert f"start charrnn {command} alone" in capsys.readouterr().err


# lanes and plans


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_lane_belongs_to_one_rank(size):
    """All lanes are shared, as evenly as possible."""
    parts = [Ranks(rank, size).lanes(7) for rank in range(size)]
    assert [lane for part in parts for lane in range(7)[part]] == list(range(7))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_lanes_are_refused(plan):
    """A rank without a lane would have nothing to do."""
    allowed, refused = (replace(plan.environment, ranks=Ranks(0, size)) for size in (2, 3))
    given = {"batch_size": 2, "steps": 3}
    task = plan.task
    distributed_plan = plan_new_run(plan.run, task.corpus, task.corpus_config, given, allowed)
    assert distributed_plan.lanes == slice(0, 1)
    with pytest.raises(UsageError, match="3 processes for 2 lanes"):
        plan_new_run(plan.run, task.corpus, task.corpus_config, given, refused)


def test_the_recipe_counts_the_cores_of_all_ranks(plan):
    """Four ranks with one core each get the plan of one process with four."""
    corpus, config = plan.task.corpus, plan.task.corpus_config
    one = make_new_plan(plan.run, corpus, threads=4, minutes=5.0)
    environment = replace(plan.environment, threads=1, ranks=Ranks(2, 4))
    four = plan_new_run(plan.run, corpus, config, {"minutes": 5.0}, environment)
    assert (one.task.model, one.task.training) == (four.task.model, four.task.training)


def test_a_note_reports_another_number_of_processes(plan):
    """Sums then round differently."""
    program.run_plan(plan, stop_step=3)
    again = plan_again(with_environment(plan, ranks=Ranks(0, 2)))
    assert any("processes was 1, is 2" in note for note in again.notes)
    assert plan_again(plan).notes == ("resuming from step 4",)


@pytest.mark.parametrize(("size", "num_scored"), [(2, None), (3, 7000), (40, None), (40, 7000)])
def test_ranks_predict_what_one_process_predicts(size, num_scored):
    """Character by character, because the lanes are the same."""
    corpus = make_corpus(make_text(20_000))
    config = ModelConfig(cell="gru", vocab_size=len(corpus.vocab), embedding_dim=8, hidden_size=16, num_layers=1)
    network = CharRNN(config, seed=1).reader(threads=2)
    options = {"context": corpus.ids[:1], "num_scored": num_scored, "num_top": 2}
    (whole,) = predict(network, corpus.ids, **options)
    parts = [next(predict(network, corpus.ids, **options, ranks=Ranks(rank, size))) for rank in range(size)]
    for name in ("ids", "ranks", "top"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    np.testing.assert_allclose(np.concatenate([part.nats for part in parts]), whole.nats, atol=1e-5)


# joining, in threads that share a store


def in_threads(size, function, store=None):
    """Call function(ranks, store) for each rank in a thread; return the results or errors."""
    store = store or torch.distributed.HashStore()
    results = [None] * size

    def call(rank):
        try:
            results[rank] = function(Ranks(rank, size, rank, size), store)
        except CharrnnError as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def share_number(ranks, store):
    """Join, and return the number that the first rank stores."""
    part = distributed._new_store(store, ranks)
    if ranks.is_first:
        part.set("number", str(os.urandom(8).hex()))
    return part.get("number")


def test_ranks_join_a_new_part_of_the_store_at_each_start():
    """Messages from earlier starts, which torchrun keeps, are not seen."""
    store = torch.distributed.HashStore()
    first, second = (in_threads(3, share_number, store) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 1
    assert first != second


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_does_not_join_is_named(monkeypatch, missing):
    """After a while; its node may be down."""
    monkeypatch.setattr(distributed, "_JOIN_TIMEOUT", 0.1)
    with pytest.raises(CharrnnError, match=f"rank {missing} did not join within 0 seconds"):
        distributed._new_store(torch.distributed.HashStore(), Ranks(1 - missing, 2))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_several_processes_refuse_another_device_than_the_cpu(monkeypatch, device):
    """The first rank says so; the others end with the same code."""
    store = torch.distributed.HashStore()
    module = sys.modules["torch.distributed.rendezvous"]
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(store, None, None)]))

    def join(ranks, _):
        with process_group(ranks, device=device):
            raise AssertionError

    first, second = in_threads(2, join)
    assert isinstance(first, UsageError)
    assert str(first) == f"--device {device}: several processes train on CPUs only; use --device cpu or one process"
    assert isinstance(second, PeerError)
    assert second.exit_code == first.exit_code


@pytest.mark.parametrize(
    ("failing", "expected"),
    [(0, (InputError, 3, "no such text")), (2, (CharrnnError, 3, "rank 2: no such text"))],
)
def test_ranks_fail_together(failing, expected):
    """The first rank raises the error, whichever rank it happened in."""

    def agree(ranks, store):
        def prepare():
            if ranks.rank == failing:
                raise InputError("no such text")

        return replace(ranks, store=store).agree("text", prepare)

    first, *others = in_threads(3, agree)
    assert (type(first), first.exit_code, str(first)) == expected
    assert [(type(error), error.exit_code) for error in others] == [(PeerError, 3)] * 2


def test_an_unreachable_store_is_explained():
    """In one line, which says how to continue."""
    with (
        pytest.raises(CharrnnError, match="is gone or unreachable; the same command resumes") as caught,
        distributed._explaining_errors(),
    ):
        raise RuntimeError("connection closed\nstack trace")
    assert str(caught.value).endswith("(connection closed)")


# two processes


def write_text(folder):
    """Write the text that commands train on."""
    (folder / "made.txt").write_text(make_text(6000), encoding="utf-8")
    os.utime(folder / "made.txt", (1e9, 1e9))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run these tasks and a command in two processes; return their folder and results."""
    folder = tmp_path_factory.mktemp("two")
    write_text(folder)
    (folder / "command.json").write_text(json.dumps(COMMAND))
    program.stop_single(SINGLE, folder)
    tasks = ["exchange", "train_gru", "stop_two", "resume", "resume_single", "diverge", "score"]
    return folder, run_tasks(2, folder, *tasks)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Train in this process alone; return the folder and the losses."""
    folder = tmp_path_factory.mktemp("one")
    return folder, program.train_gru(SINGLE, folder)


def check_exchange(results):
    """Check what the ranks exchanged."""
    size = len(results)
    total = sum(range(size))
    for rank, result in enumerate(results):
        found = result["exchange"]
        assert found["all_reduce"] == [[[total] * 3] * 2, [size]]
        assert found["all_gather"] == [float(r) for r in range(size) for _ in range(9)[Ranks(r, size).lanes(9)]]
        assert (found["broadcast_number"], found["broadcast"], found["agreed"]) == (100, [5.0], 7 + rank)
        assert found["work_was_done"] == (rank > 0)
        if rank:
            assert found["failed"][:2] == ["PeerError", 3]
            assert found["differing"][:2] == ["PeerError", 2]
    first = results[0]["exchange"]
    assert first["failed"] == ["CharrnnError", 3, f"rank {size - 1}: no such text"]
    assert first["differing"][:2] == ["UsageError", 2]
    assert first["differing"][2].startswith("--seed is 0 in rank 0 and 1 in rank 1; all need the same command")


def test_ranks_exchange_sums_states_numbers_and_errors(two):
    """Also the first rank's values, and the work that one rank does before the others."""
    check_exchange(two[1])


def test_two_processes_train_like_one(two, single):
    """With uneven lanes, dropout and weight drop: the losses of each step, the scores and the weights."""
    folder, results = two
    assert_same_losses(results[0]["train_gru"], single[1])
    assert results[1]["train_gru"] == results[0]["train_gru"]  # to the last bit
    assert_same_models([single[0] / "whole", folder / "whole"], "gru")


def test_a_signal_to_one_rank_stops_all(two):
    """One step after the signal."""
    for losses in two[1][0]["stop_two"] + two[1][1]["stop_two"]:
        assert losses[-1][:2] == ["interrupted", 15]
    assert two[1][0]["stop_two"][0][-2][1] == program.STOP_STEP + 1


def test_a_resumed_run_is_bit_identical(two):
    """The same model, state and log as those of an uninterrupted run."""
    whole, resumed = (digests(program.make_plan(two[0] / name, "gru", SINGLE)) for name in ("whole", "stopped"))
    assert resumed == whole


def test_a_run_can_resume_in_another_number_of_processes(two, single):
    """From two to one and from one to two, with the losses of an uninterrupted run."""
    folder, results = two
    rest = [row for row in single[1] if row[1] > program.STOP_STEP + 1]
    assert_same_losses(program.run_plan(program.make_plan(folder / "moved", "gru", SINGLE)), rest)
    assert_same_losses(results[0]["resume_single"], rest)


def test_a_loss_that_is_not_finite_in_one_rank_sends_all_back(two):
    """To the same state; training continues with half the learning rate."""
    first, second = (result["diverge"] for result in two[1])
    assert first == second
    ((message, step, _),) = [row for row in first if "finite" in row[0]]
    assert "the loss is not finite" in message
    assert step < 10
    assert first[-1][:2] == ["finished", 24]


def test_all_ranks_get_the_score_of_the_whole_text(two, tmp_path):
    """Each scores a part of the text, which may be empty."""
    expected = program.score(SINGLE, tmp_path)
    for result in two[1]:
        assert result["score"] == pytest.approx(expected, abs=1e-5)


# more processes and cells


@pytest.mark.slow
def test_three_processes_exchange_stop_and_score_like_one(tmp_path):
    """A size that divides neither the lanes nor the machine's cores."""
    results = run_tasks(3, tmp_path, "exchange", "train_gru", "stop_two", "score")
    check_exchange(results)
    alone = program.train_gru(SINGLE, tmp_path / "alone")
    assert_same_losses(results[0]["train_gru"], alone)
    assert results[0]["score"] == pytest.approx(program.score(SINGLE, tmp_path), abs=1e-5)
    resumed = run_tasks(2, tmp_path, "resume")[0]["resume"]  # three processes before, two now
    assert_same_losses(resumed, [row for row in alone if row[1] > program.STOP_STEP + 1])


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_other_cells_train_like_one_process(tmp_path, size):
    """With uneven lanes, dropout and weight drop."""
    alone = program.train_others(SINGLE, tmp_path / "alone")
    results = run_tasks(size, tmp_path / "together", "train_others")
    for cell, expected in alone.items():
        assert_same_losses(results[0]["train_others"][cell], expected)
        assert all(result["train_others"][cell] == results[0]["train_others"][cell] for result in results)
        assert_same_models([tmp_path / "alone" / "whole", tmp_path / "together" / "whole"], cell)


@pytest.mark.slow
def test_a_lost_rank_is_reported_by_all_others(tmp_path):
    """In one line, which says how to continue."""
    for result in run_tasks(3, tmp_path, "lose_last", last_code=3):
        name, _, message = result["lose_last"]
        assert name == "CharrnnError"
        assert message.startswith("another process of this run is gone")
        assert "\n" not in message


# the command, under torchrun


@pytest.fixture
def folder(tmp_path):
    """A folder with a text."""
    write_text(tmp_path)
    return tmp_path


def start_torchrun(folder, *args, module="charrnn", size=2, options=("--standalone",), fault=""):
    """Start a module in several processes by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*launcher, "-m", "--", module, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR", "FAULT": fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def read_log(folder, run):
    """Return the events of a run."""
    return [json.loads(line) for line in (folder / "checkpoints" / run / "log.jsonl").read_text().splitlines()]


@posix
@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_ends_the_same(two, folder):
    """torchrun restarts the processes; the model is bit-identical, even if the command says --fresh."""
    command = [*COMMAND, "--fresh", "--save-every", "0"]
    options = ("--standalone", "--max-restarts", "2")
    killed = start_torchrun(folder, *command, module="tests.ranks", options=options, fault="kill")
    ((_, err),), codes = wait_for([killed])
    assert codes == [0], err
    assert "another process of this run is gone" in err
    assert any(event["event"] == "resumed" and event["step"] > 0 for event in read_log(folder, "made"))
    whole, resumed = (root / "checkpoints" / "made" / "model.safetensors" for root in (two[0], folder))
    assert resumed.read_bytes() == whole.read_bytes()


@posix
def test_a_signal_to_torchrun_stops_all_after_saving(folder):
    """At the same step; one message says so."""
    command = ["train", "made.txt", *TRAIN, "--steps", "100000"]
    ((_, err),), _ = wait_for([start_torchrun(folder, *command, module="tests.ranks", fault="terminate")])
    assert err.count("stopped after step") == 1, err
    step = int(err.partition("stopped after step ")[2].partition(";")[0])
    assert (folder / "checkpoints" / "made" / f"state-{step}.safetensors").exists()


@posix
@pytest.mark.slow
def test_two_launchers_make_one_run(folder):
    """As on two nodes; settings that differ between them are refused."""
    endpoint = f"127.0.0.1:{free_port()}"
    options = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "x"]
    command = ["train", "made.txt", *TRAIN, "--steps", "20"]
    printed, codes = wait_for([start_torchrun(folder, *command, size=1, options=options) for _ in range(2)])
    assert codes == [0, 0], printed
    assert sorted(out for out, _ in printed) == ["", "checkpoints/made/model.safetensors\n"]
    seeds = [["--seed", str(number)] for number in (4, 5)]
    printed, codes = wait_for(
        [start_torchrun(folder, *command, "--fresh", *seed, size=1, options=options) for seed in seeds]
    )
    assert all(codes)
    messages = [line for _, err in printed for line in err.splitlines() if line.startswith("charrnn: ")]
    assert len(messages) == 1
    assert "--seed is" in messages[0]
    assert "in rank 0 and" in messages[0]
    assert read_log(folder, "made")[-1]["event"] == "finished"  # nothing was discarded
