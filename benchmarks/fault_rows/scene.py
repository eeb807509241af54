"""A run's folder with something to lose in it, what is saved there next, and what a fault may leave of both."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from charrnn.config import ModelConfig
from charrnn.data.vocab import Vocab
from charrnn.errors import ModelFileError
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.training.folder import MODEL_NAME, Log, Run
from charrnn.training.saving import StateSnapshot

OLDEST, OLD, NEW, LATER = 10, 20, 30, 40  # steps of the states: two that are there, and those saved next
RUN = "run"
_CHARS = "\n .abcdefghijklmnopqrstuvwxyz"
_EVENTS_PER_STEP = 0.2


def make_model(number: int) -> ModelFile:
    """A small model, one for each number."""
    rng = np.random.default_rng(number)
    config = ModelConfig(cell="gru", vocab_size=len(_CHARS), embedding_dim=8, hidden_size=24, num_layers=1)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.tensor_shapes().items()}
    scores = {"nats_per_char": 2.0 - 0.1 * number, "num_chars": 500, "step": number, "whole": True, "selection": True}
    provenance = {"text": {"paths": ["text.txt"], "sha256": "ab" * 32}, "split": {"num_train": 4500, "num_valid": 500}}
    return ModelFile(config, Vocab(_CHARS), tensors, scores, provenance)


def make_state(step: int) -> StateSnapshot:
    """A small state, one for each step, that counts on some events of the log."""
    rng = np.random.default_rng(step)
    tensors = {f"weights.{name}": rng.normal(size=(40, 50)).astype(np.float32) for name in "abc"}
    tensors["hidden.0"] = rng.normal(size=(1, 4, 24)).astype(np.float32)
    settings = {"model": asdict(make_model(1).config), "training": {"batch_size": 4, "seq_len": 8}}
    return StateSnapshot(step, tensors, {"step": step, "num_events": num_events(step), "finished": False, **settings})


def num_events(step: int) -> int:
    """How many events of the log a state counts on."""
    return int(_EVENTS_PER_STEP * step)


def log_events(run: Run, first: int, last: int) -> None:
    """Append events, from number first on, as a run tells them."""
    log = Log(run)
    for number in range(first, last):
        problem = log.append({"event": "progress", "step": number, "nats_per_char": 1 / (number + 1)})
        if problem:
            raise OSError(problem)


@dataclass(frozen=True)
class Scene:
    """A folder with a model, two states and a log; and by step and number the bytes of all that is ever saved.

    models: the first is there, the others are still to be saved.
    """

    root: Path
    states: dict[int, bytes]
    models: tuple[bytes, ...]

    @classmethod
    def build(cls, root: Path, *, steps: Sequence[int] = (OLDEST, OLD, NEW, LATER), num_models: int = 2) -> "Scene":
        """Make the folder, and everything that will be saved once in another."""
        proofs, base = Run("proofs", root), Run(RUN, root / "base")
        for run in (proofs, base):
            run.folder.mkdir(parents=True)
        states, models = {}, []
        for step in steps:
            state = make_state(step)
            proofs.save_state(step, state.tensors, state.meta)
            states[step] = proofs.state_path(step).read_bytes()
        for number in range(num_models):
            save_model(proofs.model_path, make_model(number))
            models.append(proofs.model_path.read_bytes())
        for step in (OLDEST, OLD):
            base.state_path(step).write_bytes(states[step])
        base.model_path.write_bytes(models[0])
        log_events(base, 0, num_events(OLD))
        return cls(root, states, tuple(models))

    def copy(self) -> Run:
        """A fresh copy of the folder to do something to, in place of the last one."""
        root = self.root / "try"
        if root.exists():
            shutil.rmtree(root)
        shutil.copytree(self.root / "base", root)
        return Run(RUN, root)

    def wrong(self, run: Run, *, least: int = OLD, damage: bool = False) -> str | None:
        """What doesn't hold in a folder after a fault: None where a whole state and a whole model load.

        least: the step of a state that had been saved before. damage: whether some files may
        have been damaged, as long as they are passed over.
        """
        try:
            saved = run.newest_state()
            load_model(run.model_path)
        except ModelFileError as error:
            return str(error)
        if saved is None or saved.meta["step"] < least:
            return f"{'no state' if saved is None else saved.path.name} is left, though that of step {least} was saved"
        step = saved.meta["step"]
        if saved.damaged and not damage:
            return f"there are damaged states: {saved.damaged}"
        if saved.path != run.state_path(step) or saved.path.read_bytes() != self.states[step]:
            return f"{saved.path.name} is not what was saved"
        model = run.model_path.read_bytes()
        if model not in self.models:
            return "the model is not one that was saved"
        if step >= NEW and self.models.index(model) == 0:
            return "the new state is there, but the model that it counts on isn't"
        return None

    def litter(self, run: Run) -> str | None:
        """What lies in a folder that doesn't belong there: but for temporary files, which the next run takes away."""
        ours = {MODEL_NAME, "log.jsonl", ".lock", ".lock-holder", *(run.state_path(step).name for step in self.states)}
        odd = [path.name for path in run.folder.iterdir() if path.name not in ours and not _is_temporary(path)]
        if odd:
            return f"left over: {', '.join(odd)}"
        with run.locked():
            left = [path.name for path in run.folder.iterdir() if _is_temporary(path)]
        return f"not taken away by the next run: {', '.join(left)}" if left else None

    def save_later(self, run: Run) -> str | None:
        """Save another state, as the next run would; what doesn't work about that."""
        state = make_state(LATER)
        with run.locked():
            save_model(run.model_path, make_model(1))
            run.save_state(state.step, state.tensors, state.meta)
        num_states = len(list(run.folder.glob("state-*")))
        return f"{num_states} states are kept" if num_states != 2 else self.wrong(run, least=LATER)


def save_new(run: Run) -> None:
    """What a run does at a new best model: the log, the model, the state; the oldest state goes."""
    state = make_state(NEW)
    log_events(run, num_events(OLD), num_events(NEW))
    save_model(run.model_path, make_model(1))
    run.save_state(state.step, state.tensors, state.meta)


def _is_temporary(path: Path) -> bool:
    """Whether a file is one that is written before it gets its name."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
