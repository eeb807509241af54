"""How a run's time is spent: its speed, the steps that fit, what evaluations may cost."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from charrnn.config import NUM_GATES, ModelConfig, TrainConfig

DEFAULT_MINUTES = 5.0
_LONG_TEXT = 500_000  # characters to train on; a shorter one has a budget of passes
_PASSES = 30
_SPEED = 2.5e11  # floating point operations a second and thread, roughly


class Recommendation(NamedTuple):
    """What `recommend` chose, and why: a reason by the name of the setting."""

    model: ModelConfig
    training: TrainConfig
    reasons: dict[str, str]


def default_budget(num_chars: int, train_config: TrainConfig) -> tuple[float | None, int | None]:
    """Minutes or steps of a run that was given neither: (minutes, None) or (None, steps).

    A text of num_chars is learnt after at most thirty passes, from where on it is only
    measure_copying; five minutes don't reach that where it is long.
    """
    if num_chars >= _LONG_TEXT:
        return DEFAULT_MINUTES, None
    return None, math.ceil(_PASSES * num_chars / (train_config.batch_size * train_config.seq_len))


def recommend(
    num_chars: int, vocab_size: int, *, seconds: float | None, device: str, threads: int, steps: int | None = None
) -> Recommendation:
    """Choose network and schedule for a text of num_chars training characters and a budget of seconds or of steps.

    PackedPair None: the default budget. The measurements behind it are in docs/recipe.md.
    """
    large = num_chars >= 20_000
    model = ModelConfig(
        cell="gru",
        vocab_size=vocab_size,
        embedding_dim=64 if num_chars >= 40_000 and vocab_size <= 1000 else 128,
        hidden_size=512 if large else 256 if num_chars >= 3_000 else 64,
        num_layers=2 if large and device != "cpu" else 1,
    )
    seq_len = 64 if large else 32
    training = TrainConfig(
        batch_size=min(32, max(1, num_chars // (8 * seq_len))),
        seq_len=min(seq_len, num_chars),
        dropout=0.0,
        learning_rate=6e-3 if model.num_layers == 1 else 4e-3,
        steps=steps,
    )
    if seconds is None and steps is None:
        minutes, steps = default_budget(num_chars, training)
        seconds = minutes and 60 * minutes
    if steps is not None:
        passes = steps * training.batch_size * training.seq_len / num_chars
        often = f"{steps:,} steps"
    else:
        assert seconds is not None
        passes = min(seconds * _SPEED * threads / _work(model), 10**15) / num_chars
        often = f"{seconds / 60:,.3g} minutes"
    # of the outputs and of the recurrent weights as much is dropped, more of a short text and of one read often
    dropped = round(max(0.05, 0.1 * math.log2(min(passes, 16.0) * 250_000 / num_chars)), 2)
    training = dataclasses.replace(training, dropout=min(0.55, dropped), weight_drop=min(0.4, dropped))
    reasons = {
        "cell": "learns more in a minute than an LSTM, and far more than an RNN",
        "hidden_size": f"what pays for {num_chars:,} characters in this time; a smaller text is learnt by heart sooner",
        "batch_size": "small steps, and many: the next ones profit from them",
        "dropout": f"{often} read the text some {passes:,.3g} times; a short one is soon learnt by heart",
        "weight_drop": "helps as dropout does, and each more beside the other",
    }
    return Recommendation(model, training, reasons)


def _work(model: ModelConfig) -> int:
    """Floating point operations that training on a character takes, roughly: forward and twice that back."""
    recurrent = NUM_GATES[model.cell] * model.hidden_size**2 * (2 * model.num_layers - 1)
    return 6 * (recurrent + model.vocab_size * model.hidden_size)


def estimate_memory(model: ModelConfig, training: TrainConfig) -> int:
    """Bytes a training step needs beyond the libraries: weights, moments and activations, in float32."""
    gates = NUM_GATES[model.cell]
    optimiser = 8 * 4 * model.num_parameters  # weights, copies laid out for products, gradients, two moments
    kept = {"rnn": 4, "gru": 8, "lstm": 9}[model.cell]  # of a layer, for the way back: gates, outputs, their gradients
    per_step = 4 * gates * model.num_layers * model.hidden_size
    per_char = kept * model.num_layers * model.hidden_size
    return optimiser + 4 * training.batch_size * (training.seq_len * per_char + per_step)


@dataclass
class StopRequest:
    """Set by the first signal that asks the run to end; knows how long the process was stopped by Ctrl-Z."""

    signal_number: int | None = None
    paused: float = 0.0  # seconds

    def clock(self) -> float:
        """Seconds, of which those that the process was stopped don't count."""
        return time.perf_counter() - self.paused


NUM_EVALUATIONS = 12  # if they were equally far apart; at first they are closer
_VALID_PART = 1 / 480  # characters each of them scores, of those trained on in the run
_COUNTING = 2.5e-6  # seconds a character takes to be counted in n-grams and weighed
_FIRST_GAP, _GROWING_GAP = 50, 0.2  # steps between evaluations: so many, then this share of the steps done


def valid_part(num_valid: int, train_config: TrainConfig, num_steps: int) -> int:
    """How many held-out characters each evaluation on the way scores, at most num_valid.

    All of them, about two dozen, cost about a twentieth of the run: scoring a character takes
    a third of training on one, and warming the lanes up doubles that.
    """
    trained = num_steps * train_config.batch_size * train_config.seq_len
    return min(num_valid, max(1000, int(trained * _VALID_PART)))


def evaluation_is_due(done: int, last: int, span: int | None) -> bool:
    """Whether the held-out text is scored after so many steps of a span, having been after the `last` one.

    At first often, so that the best weights are found also where a text is learnt long before
    the budget ends.
    """
    if span is None:
        return False
    return done == span or done - last >= min(span / NUM_EVALUATIONS, max(_FIRST_GAP, _GROWING_GAP * done))


class Pace:
    """Wall time since this was made: the speed, when to save, how many steps a budget allows.

    clock: seconds from anywhere. save_every: seconds between two states.
    """

    _PROBE = 0.03  # of the budget, and at least these steps, before the number of steps is fixed
    _PROBE_STEPS = 5

    def __init__(self, clock: Callable[[], float], *, save_every: float) -> None:
        self._clock, self._save_every = clock, save_every
        self._start = self._saved = self._begun = clock()
        self._steps = self._chars = 0
        self._first_done = self._start  # the first step allocates and warms caches: not like the others
        self._busy = 0.0  # seconds in steps
        self._told = (0, 0.0)  # characters and busy seconds at the last question about the speed

    def begin_step(self) -> None:
        """Start the clock of a step."""
        self._begun = self._clock()

    def end_step(self, num_chars: int) -> None:
        """Count a step that is done, of num_chars characters."""
        now = self._clock()
        self._steps += 1
        self._chars += num_chars
        self._busy += now - self._begun
        if self._steps == 1:
            self._first_done = now

    def is_known(self, seconds: float) -> bool:
        """Whether enough steps were measured to plan a budget of so many seconds."""
        return self._steps > self._PROBE_STEPS and self._clock() - self._start > self._PROBE * seconds

    def steps_left(self, seconds: float, *, num_valid: int, num_counted: int = 0) -> int:
        """Steps that fit in what is left of the budget, at least one.

        Evaluations on the way and saves take about a twentieth; the last evaluation scores
        all num_valid held-out characters, each at half the cost of training on one. num_counted:
        characters whose n-grams are counted and weighed at the end.
        """
        now = self._clock()
        per_step = (now - self._first_done) / (self._steps - 1)
        final = 0.5 * num_valid * per_step / (self._chars / self._steps)
        final += _COUNTING * num_counted
        return max(1, int(0.95 * (seconds - (now - self._start) - final) / per_step))

    def seconds_left(self, num_steps: int) -> float:
        """The time so many more steps take at the pace so far, all else included."""
        return num_steps * (self._clock() - self._start) / self._steps

    def chars_per_second(self) -> float:
        """The speed of the steps since this was last asked, all else left out."""
        chars, busy = self._chars - self._told[0], self._busy - self._told[1]
        self._told = self._chars, self._busy
        return chars / max(busy, 1e-9)

    def state_is_due(self) -> bool:
        """Whether the last state that was saved is old."""
        return self._clock() - self._saved > self._save_every

    def state_was_saved(self) -> None:
        """Count from now on until the next one is due."""
        self._saved = self._clock()
