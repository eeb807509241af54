"""A row of the table, and how its tries are counted: a try that raises has not survived."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SCALES = ("smoke", "ci", "night")


class Broken(Exception):
    """Something does not hold that must hold; the message says what."""


def expect(holds: object, problem: str) -> None:
    """Raise Broken with this problem unless something holds."""
    if not holds:
        raise Broken(problem)


def problem_of(trial: Callable[..., Any], *arguments: Any) -> str | None:
    """Call a trial; return what it found wrong, None if nothing."""
    try:
        trial(*arguments)
    except Exception as error:  # a trial that fails by itself proves nothing
        return str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
    return None


@dataclass
class Outcome:
    """How often a fault was tried and survived, and the first failures; skipped: why nothing can be tried here."""

    fault: str
    must_hold: str
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    def note(self, name: str, problem: str | None, *, tries: int = 1) -> None:
        """Count tries that had this problem, or none."""
        self.tried += tries
        if problem is None:
            self.survived += tries
        elif len(self.failures) < 20:
            self.failures.append(f"{name}: {problem}")

    @property
    def held(self) -> bool:
        return bool(self.skipped) or (self.tried > 0 and self.survived == self.tried)


# A fault, what must hold, its tries at each of SCALES, and what tries it: fill(outcome, count, rng)
Row = tuple[str, str, tuple[int, int, int], Callable[..., None]]
