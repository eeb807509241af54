"""How a run's time is spent: its speed, the steps that fit, what evaluations may cost."""

from collections.abc import Callable

from charrnn.config import TrainConfig

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
