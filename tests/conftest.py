"""Fixtures: a small text, small models, and the plans that train them."""

import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from charrnn.config import CorpusConfig, ModelConfig, SampleConfig, TrainConfig
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus
from charrnn.data.splitting import split
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scoring import predict
from charrnn.files import CACHE_VARIABLE, CHECKPOINTS_VARIABLE
from charrnn.kernels.head import Predictions
from charrnn.model.file import ModelFile
from charrnn.model.network import CharRNN
from charrnn.model.windows import KernelNetwork, Reader
from charrnn.numerics.compilation import cache_folder
from charrnn.runs.folder import SESSION_EVENTS, Run
from charrnn.runs.log import Log
from charrnn.runs.writer import Writer
from charrnn.sampling.sampler import Sampler
from charrnn.training.loop import train
from charrnn.training.plan import Environment, RunPlan, Task
from charrnn.training.planning import plan_new_run
from charrnn.training.resume import plan_resumed_run

torch.set_num_threads(2)

# No test may depend on how busy the machine is, nor fail by chance: the default suite always tries the same examples.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")


def pytest_configure(config):
    """Handle signals as at a prompt, whatever this process inherited; compile the kernels before processes share tests.

    In the background or under nohup a shell starts processes that ignore SIGINT or SIGHUP, and so would all children.
    Texts are the same bytes everywhere; Windows would end their lines with CRLF.
    """
    Path.write_text = functools.partialmethod(Path.write_text, newline="\n")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        command = "from charrnn import precompile; precompile.for_training('float32')"
        subprocess.run([sys.executable, "-P", "-c", command], check=False)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The tests have their own cache of texts, and the user's cache of kernels, which take half a minute to compile."""
    os.environ["NUMBA_CACHE_DIR"] = str(cache_folder().parent)
    for variable in (CHECKPOINTS_VARIABLE, CACHE_VARIABLE):
        os.environ.pop(variable, None)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cache(tmp_path) -> Cache:
    """An empty cache."""
    (tmp_path / "own-cache").mkdir()
    return Cache(tmp_path / "own-cache")


def make_text(length: int, seed: int = 0) -> str:
    """A text of a small made-up language whose words have some order."""
    rng = random.Random(seed)
    words = ["ba", "bane", "dor", "dorin", "e", "ilu", "kest", "lo", "mirra", "na", "ost", "sa", "tul", "ven"]
    lines = []
    while sum(map(len, lines)) < length:
        first = rng.randrange(len(words))
        lines.append(
            " ".join(words[(first + k * rng.choice([1, 1, 2])) % len(words)] for k in range(rng.randint(3, 7))) + ".\n"
        )
    return "".join(lines)[:length]


@pytest.fixture(scope="session")
def text() -> str:
    """A text of 6,000 characters."""
    return make_text(6000)


def make_corpus(text: str, *, sha256: str = "0" * 64, **config) -> Corpus:
    """A corpus without a file."""
    vocab = Vocab.from_text(text)
    num_train, num_valid = split(len(text), CorpusConfig(**config))
    return Corpus(vocab.encode(text), vocab, num_train, num_valid, ("made.txt",), sha256)


@pytest.fixture(scope="session")
def corpus(text: str) -> Corpus:
    """The text, encoded and split."""
    return make_corpus(text)


def make_model_file(config: ModelConfig, *, seed: int = 3, scale: float = 1.0, chars: str | None = None) -> ModelFile:
    """A model file with random weights; scale: larger ones than a new network's."""
    model = CharRNN(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "embedding.weight":
                parameter.mul_(scale)
            if parameter.dim() == 1 and "bias_hh" not in name:
                parameter.uniform_(-0.3, 0.3, generator=generator)
    vocab = Vocab(chars or "".join(map(chr, range(33, 33 + config.vocab_size))))
    return ModelFile(config, vocab, model.to_arrays(), {}, {})


@pytest.fixture
def plan(tmp_path, corpus: Corpus) -> RunPlan:
    """A run of 24 steps of a tiny GRU with dropout."""
    return small_plan(tmp_path / "runs", corpus)


def small_plan(root: Path, corpus: Corpus) -> RunPlan:
    """The same, in another folder."""
    model = ModelConfig(cell="gru", vocab_size=len(corpus.vocab), embedding_dim=8, hidden_size=16, num_layers=2)
    training = TrainConfig(batch_size=8, seq_len=16, dropout=0.25, learning_rate=1e-2, steps=24)
    (root / "made").mkdir(parents=True, exist_ok=True)
    task = Task(corpus, CorpusConfig(), model, training)
    return RunPlan(Run("made", root=root), task, Environment(device="cpu", threads=2))


def with_settings(plan: RunPlan, *, model=None, **training) -> RunPlan:
    """The plan with other training settings. model: other settings of the network, by name."""
    task = plan.task
    return replace(
        plan,
        task=replace(task, model=replace(task.model, **(model or {})), training=replace(task.training, **training)),
    )


def with_cell(plan: RunPlan, cell: str, **training) -> RunPlan:
    """The plan for another cell, with other training settings."""
    return with_settings(plan, model={"cell": cell}, **training)


def relative_error(found, expected) -> float:
    """The norm of the difference over the norm of the expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def run_through(plan, *, stop_after=None, stop=None, **options):
    """Train to the end or for stop_after events, and log as the command line does."""
    events, log = [], Log(plan.run)
    for event in islice(train(plan, stop=stop, **options), stop_after):
        assert log.append(event.record()) is None
        events.append(event)
    return events


def digests(plan):
    """SHA-256 of the model file and the newest state, and the log without clock, folder and session events."""
    volatile = {"saved": {"path"}, "finished": {"model"}, "progress": {"chars_per_second", "seconds_left"}}
    records = [json.loads(line) for line in plan.run.log_path.read_text().splitlines()]
    log = [
        {key: value for key, value in record.items() if key not in volatile.get(record["event"], ())}
        for record in records
        if record["event"] not in SESSION_EVENTS
    ]
    files = [plan.run.model_path, plan.run.newest_state().path]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files], log


def plan_again(plan, **given):
    """The plan of the same command given again: it resumes from the run's state, if there is one."""
    saved = plan.run.newest_state()
    if saved is None:
        return plan
    return plan_resumed_run(plan.run, saved, plan.task.corpus, given, plan.environment)


def make_new_plan(run, corpus, *, threads=2, **given):
    """The plan of `charrnn train` in an empty folder."""
    return plan_new_run(run, corpus, CorpusConfig(), given, Environment(threads=threads))


def draw_text(model: ModelFile | Sampler, prompt: str = "", *, number: int = 0, **settings) -> str:
    """The text of one stream. settings: of SampleConfig."""
    sampler = model if isinstance(model, Sampler) else Sampler(model, threads=1)
    return "".join(sampler.stream(SampleConfig(prompt=prompt, **settings), number=number))


class SynchronousWriter(Writer):
    """A writer that waits for the disk at once, so that a failure is seen in its step."""

    def put(self, item):
        super().put(item)
        self.wait()


def with_environment(plan: RunPlan, **changes) -> RunPlan:
    """The plan in an environment with other threads, precision or ranks."""
    return replace(plan, environment=replace(plan.environment, **changes))


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained without interruption. Its folder is shared: copy it before changing anything."""

    plan: RunPlan
    events: list
    digests: tuple

    def copy_to(self, plan: RunPlan) -> RunPlan:
        """Put the finished run into the folder of an equal plan, as if that plan had been trained."""
        shutil.copytree(self.plan.run.folder, plan.run.folder, dirs_exist_ok=True)
        return plan


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """A function that trains a plan's run without interruption, in another folder; equal runs are trained once."""
    found = {}

    def train_once(plan: RunPlan) -> FinishedRun:
        corpus, settings = plan.task.corpus, plan.task.settings()
        text = (corpus.ids.tobytes(), corpus.vocab, corpus.names, corpus.sha256, corpus.num_train, corpus.num_valid)
        key = hashlib.sha256(repr((text, settings, plan.environment, plan.budget)).encode()).hexdigest()
        if key not in found:
            run = replace(plan.run, root=tmp_path_factory.mktemp("uninterrupted"))
            run.folder.mkdir()
            copy = replace(plan, run=run)
            events = run_through(copy)
            found[key] = FinishedRun(copy, events, digests(copy))
        return found[key]

    return train_once


def make_reader(config: ModelConfig, arrays) -> KernelNetwork:
    """A network with these weights, which two threads read."""
    return KernelNetwork.from_arrays(config, arrays, threads=2)


def predict_text(network: Reader, ids, **options) -> Predictions:
    """The predictions that scoring.predict yields in parts, joined."""
    parts = zip(*predict(network, ids, **options), strict=True)
    return Predictions(*(np.concatenate(arrays) for arrays in parts))


@torch.no_grad()
def sequential_nats(file: ModelFile, ids, context):
    """The nats (N,) of ids after the context, read strictly in sequence by the network's forward."""
    model = CharRNN.from_arrays(file.config, file.tensors)
    text = torch.from_numpy(np.concatenate([context, ids]).astype(np.int64))[:, None]
    logits, _ = model(text[:-1], model.initial_state(1))
    return torch.nn.functional.cross_entropy(logits[:, 0], text[1:, 0], reduction="none")[len(context) - 1 :].numpy()


def cut(whole, sizes):
    """Cut a text or an array into pieces of these lengths, repeatedly; none is empty."""
    pieces, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(whole):
            return pieces
        pieces.append(whole[start : start + size])
        start += size
    return pieces
