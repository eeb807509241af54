"""The recipe and the pace: what a text and a budget imply, and how a run spends its time.

`recommend` chooses the network and how to train it; docs/recipe.md has the measurements behind it.
`Pace` measures the speed, turns a time budget into steps, and says when to save a state.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from charrnn.config import NUM_GATES, Cell, ModelConfig, Precision, TrainConfig
from charrnn.data.batches import LAST_PART

DEFAULT_MINUTES = 5.0
NUM_EVALUATIONS = 12  # in a run, if evenly spaced; at first they are closer
_SHORT_TEXT = 20_000  # characters to train on; a shorter text gets a smaller network and shorter windows
_LONG_TEXT = 500_000  # a shorter text gets a budget of passes
_PASSES, _MAX_TRAINED = 50, 15_000_000  # over a shorter text, and the characters that they train on at most
_USUAL_SIZE, _USUAL_LSTM_SIZE, _MAX_SIZE = 512, 448, 1024  # units; the first two cost as many operations
_USUAL_OPERATIONS = 1.7e14  # floating-point operations; with more, a long text gets a larger network
_FLOPS_PER_THREAD = {"bfloat16": 2.5e11, "float32": 6e10}  # per second, roughly
_LSTM_RATE, _OTHER_RATE, _DEEP_RATE = 0.02, 0.006, 0.004  # peak learning rates; the last one of several layers
_VALID_PART = 1 / 480  # held-out characters scored by each evaluation, per character trained on
_FINAL_PART = 0.4  # and by the final score of a run with a time budget, unless that is less than
_MIN_FINAL = 50_000
_SCORING_COST = 0.5  # the time that the final score takes per character, over that of training on one
_COUNTED_PER_TRAINED = 5  # characters whose n-grams are counted at the end, per character trained on, but at most
_MAX_COUNTED = 20_000_000
_SECONDS_PER_COUNTED_CHAR = 1.2e-6
_SECONDS_PER_FITTED_CHAR = 1.3e-6  # of the part in which pieces are withheld, to fit the mixture weights
_FIRST_GAP, _GROWING_GAP = 50, 0.2  # between evaluations: steps at first, then a share of the steps done


class Recommendation(NamedTuple):
    """What `recommend` chose, and the reasons by the setting's name."""

    model: ModelConfig
    training: TrainConfig
    reasons: dict[str, str]


def default_budget(num_chars: int, chars_per_step: int) -> tuple[float | None, int | None]:
    """Choose the budget of a run that was given none: (minutes, None) or (None, steps).

    A text of num_chars training characters gets fifty passes; beyond 300,000 characters fewer, down to thirty.
    A long text gets five minutes, which are fewer passes.
    """
    if num_chars >= _LONG_TEXT:
        return DEFAULT_MINUTES, None
    return None, math.ceil(min(_PASSES * num_chars, _MAX_TRAINED) / chars_per_step)


def recommend(
    num_chars: int,
    vocab_size: int,
    given: Mapping[str, Any],
    *,
    device: str,
    threads: int,
    precision: Precision,
    documents: bool = False,
) -> Recommendation:
    """Choose the network and how to train it for a text of num_chars training characters.

    given: the settings that the user named; minutes, steps, cell, size and layers bear on the others. precision:
    of the products. documents: whether the text consists of documents, which were shuffled.
    """
    large, on_cpu = num_chars >= _SHORT_TEXT, device == "cpu"
    cell: Cell = given.get("cell") or ("lstm" if large and on_cpu else "gru")
    seq_len = min(64 if large else 32, num_chars)
    batch_size = min(32, max(1, num_chars // (8 * seq_len)))
    minutes, steps = given.get("minutes"), given.get("steps")
    if minutes is None and steps is None:
        minutes, steps = default_budget(num_chars, batch_size * seq_len)
    operations = 60 * (minutes or 0.0) * threads * _FLOPS_PER_THREAD[precision]
    model = ModelConfig(
        cell=cell,
        vocab_size=vocab_size,
        embedding_dim=64 if num_chars >= 40_000 and vocab_size <= 1000 else 128,
        hidden_size=given.get("hidden_size") or _choose_hidden_size(cell, num_chars, operations if on_cpu else 0.0),
        num_layers=given.get("num_layers") or (1 if on_cpu or not large else 2),
    )
    growth = max(1.0, model.hidden_size / _USUAL_SIZE)
    training = TrainConfig(
        batch_size=batch_size,
        seq_len=seq_len,
        dropout=0.0,  # follows from the number of passes
        learning_rate=_choose_learning_rate(model, growth),
        steps=given.get("steps"),
    )
    if steps is not None:
        passes = _num_trained(training, steps) / num_chars
        budget = f"{steps:,} steps"
    else:
        passes = min(operations / _flops_per_char(model), 10**15) / num_chars
        budget = f"{minutes:,.3g} minutes"
    dropped = _choose_drop_rate(num_chars, passes, growth, documents=documents)
    training = replace(training, dropout=min(0.55, dropped), weight_drop=min(0.4, dropped))
    reasons = {
        "cell": f"learns more than {'a GRU' if cell == 'lstm' else 'an LSTM'} in this time",
        "hidden_size": f"as large as {num_chars:,} characters can use in this time; smaller texts overfit sooner",
        "batch_size": "many small steps learn more than few large ones",
        "dropout": f"{budget} read the text about {passes:,.3g} times; the shorter a text, the sooner it overfits",
        "weight_drop": "adds to dropout: some of both works better than more of either",
    }
    return Recommendation(model, training, reasons)


def _choose_hidden_size(cell: Cell, num_chars: int, operations: float) -> int:
    """Choose the units of a layer for a text of num_chars characters to train on.

    operations: floating-point operations of a budget in minutes, or 0. With more of them a larger network is best on a
    long text.
    """
    if num_chars < _SHORT_TEXT:
        return 256 if num_chars >= 3_000 else 64
    usual = _USUAL_LSTM_SIZE if cell == "lstm" else _USUAL_SIZE
    if num_chars < _LONG_TEXT:
        return usual
    best = usual * math.cbrt(operations / _USUAL_OPERATIONS)
    return max(usual, min(64 * round(best / 64), _MAX_SIZE))


def _choose_drop_rate(num_chars: int, passes: float, growth: float, *, documents: bool) -> float:
    """Choose the rate at which outputs and recurrent weights are dropped.

    It is higher for a short text, for more passes and for a larger network. growth: the units over the usual ones. Even
    a text that is not read twice needs some, because its end differs a little from the rest, but documents don't:
    they were shuffled.
    """
    least = 0.0 if documents and passes < 2.0 else 0.05
    return round(max(least, 0.1 * math.log2(min(passes, 24.0) * growth**2 * 250_000 / num_chars)), 2)


def _choose_learning_rate(model: ModelConfig, growth: float) -> float:
    """Choose the peak learning rate: lower for a larger network. growth: the units over the usual ones."""
    rate = _LSTM_RATE if model.cell == "lstm" else _OTHER_RATE
    return round((rate if model.num_layers == 1 else _DEEP_RATE) / math.sqrt(growth), 4)


def _flops_per_char(model: ModelConfig) -> int:
    """Estimate the floating-point operations to train on one character: forward, and twice as many for backward."""
    recurrent = NUM_GATES[model.cell] * model.hidden_size**2 * (2 * model.num_layers - 1)
    return 6 * (recurrent + model.vocab_size * model.hidden_size)


def estimate_memory(model: ModelConfig, training: TrainConfig) -> int:
    """Estimate the bytes of a training step, the libraries aside: weights, moments and activations, in float32."""
    gates = NUM_GATES[model.cell]
    optimizer = 8 * 4 * model.num_parameters  # weights, copies laid out for products, gradients, two moments
    activations = {"rnn": 4, "gru": 8, "lstm": 9}[model.cell]  # per unit, for backward: gates, outputs, gradients
    per_step = 4 * gates * model.num_layers * model.hidden_size
    per_char = activations * model.num_layers * model.hidden_size
    return optimizer + 4 * training.batch_size * (training.seq_len * per_char + per_step)


def valid_part(num_valid: int, train_config: TrainConfig, num_steps: int) -> int:
    """Return the number of held-out characters that each evaluation during training scores, at most num_valid.

    About two dozen evaluations together take about 5 % of the run: scoring a character takes
    a third of the time of training on one, and warming up the lanes doubles that.
    """
    return min(num_valid, max(1000, int(_num_trained(train_config, num_steps) * _VALID_PART)))


def final_part(num_chars: int, train_config: TrainConfig, num_steps: int, *, num_texts: int = 1) -> int | None:
    """Return how many characters of a text give the final score of a run with a time budget; None for all of it.

    Scoring 2,000,000 characters can take longer than a short budget; this takes at most a fifth of the training's
    time for all texts that are scored. num_texts: 2 if there is a test text.
    """
    part = max(_MIN_FINAL, int(_num_trained(train_config, num_steps) * _FINAL_PART)) // num_texts
    return part if part < num_chars else None


def counted_part(num_train: int, train_config: TrainConfig, num_steps: int) -> int:
    """Return the number of characters at the end of the training text whose n-grams are counted at the end of a run.

    That takes less than a tenth of the training's time, and about 30 bytes of memory per character of a usual text.
    """
    wanted = _COUNTED_PER_TRAINED * _num_trained(train_config, num_steps)
    return min(num_train, max(LAST_PART, min(wanted, _MAX_COUNTED)))


def _num_trained(train_config: TrainConfig, num_steps: int) -> int:
    """Return the number of characters that so many steps train on."""
    return num_steps * train_config.batch_size * train_config.seq_len


def evaluation_is_due(done: int, last: int, span: int | None) -> bool:
    """Return whether to score the held-out text after `done` of `span` steps. last: the step of the last evaluation.

    Evaluations are frequent at first, so that the best weights are found even if a text is
    learned long before the budget ends.
    """
    if span is None:
        return False
    return done == span or done - last >= min(span / NUM_EVALUATIONS, max(_FIRST_GAP, _GROWING_GAP * done))


@dataclass
class StopRequest:
    """Set by the first signal that asks the run to end; its clock leaves out the time the process was suspended."""

    signal_number: int | None = None
    paused: float = 0.0  # seconds

    def clock(self) -> float:
        """Return the seconds since an arbitrary start, without those in which the process was suspended (Ctrl-Z)."""
        return time.perf_counter() - self.paused


class Pace:
    """Measures wall time from its creation: the speed, the steps that fit a budget, when to save.

    clock: seconds from an arbitrary start. save_every: seconds between two states.
    """

    _PROBE = 0.03  # share of the budget spent measuring the speed before the number of steps is fixed
    _PROBE_STEPS = 5  # and the steps it takes at least

    def __init__(self, clock: Callable[[], float], *, save_every: float) -> None:
        self._clock, self._save_every = clock, save_every
        self._start = self._last_saved = self._step_start = clock()
        self._steps = self._chars = 0
        self._first_step_end = self._start  # the first step is slower: it allocates memory and warms caches
        self._busy = 0.0  # seconds in steps
        self._reported_chars, self._reported_busy = 0, 0.0  # at the last call of chars_per_second

    def begin_step(self) -> None:
        """Start timing a step."""
        self._step_start = self._clock()

    def end_step(self, num_chars: int) -> None:
        """Stop timing a step that trained on num_chars characters."""
        now = self._clock()
        self._steps += 1
        self._chars += num_chars
        self._busy += now - self._step_start
        if self._steps == 1:
            self._first_step_end = now

    def is_known(self, seconds: float) -> bool:
        """Return whether enough steps were measured to plan a budget of so many seconds."""
        return self._steps > self._PROBE_STEPS and self._clock() - self._start > self._PROBE * seconds

    def steps_left(self, seconds: float, *, num_scored: int, num_counted: int) -> int:
        """Return the steps that fit the rest of a budget, at least one.

        Evaluations during training and saves take about 5 %. num_scored: characters, of which final_part are
        scored at the end. num_counted: characters whose n-grams are counted at the end.
        """
        now = self._clock()
        per_step, chars_per_step = (now - self._first_step_end) / (self._steps - 1), self._chars / self._steps
        seconds -= now - self._start + _SECONDS_PER_COUNTED_CHAR * num_counted
        seconds -= _SECONDS_PER_FITTED_CHAR * min(num_counted, LAST_PART)
        budget = chars_per_step * seconds / per_step  # in characters trained on, of which the final score costs a part
        part = min(budget - _SCORING_COST * _MIN_FINAL, budget / (1 + _SCORING_COST * _FINAL_PART))
        num_chars = max(part, budget - _SCORING_COST * num_scored)
        return max(1, int(0.95 * num_chars / chars_per_step))

    def seconds_left(self, num_steps: int) -> float:
        """Return the time that num_steps more steps take at the average pace so far, evaluations and saves included."""
        return num_steps * (self._clock() - self._start) / self._steps

    def chars_per_second(self) -> float:
        """Return the speed within the steps since the last call."""
        chars, busy = self._chars - self._reported_chars, self._busy - self._reported_busy
        self._reported_chars, self._reported_busy = self._chars, self._busy
        return chars / max(busy, 1e-9)

    def state_is_due(self) -> bool:
        """Return whether save_every seconds have passed since the last state was saved."""
        return self._clock() - self._last_saved > self._save_every

    def state_was_saved(self) -> None:
        """Note that a state was just saved."""
        self._last_saved = self._clock()
