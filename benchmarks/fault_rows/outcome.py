"""What a row of the table reports."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """How often a fault was tried and how often what must hold held; why not, the first few times.

    skipped: why nothing could be tried here.
    """

    fault: str
    must_hold: str
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    def note(self, failure: str | None) -> None:
        """Count one try; failure says what didn't hold, None that all did."""
        self.tried += 1
        self.survived += failure is None
        if failure is not None and len(self.failures) < 20:
            self.failures.append(failure)

    @property
    def held(self) -> bool:
        """Whether every try survived, and there were some, or none could be made."""
        return bool(self.skipped) or (self.tried > 0 and self.survived == self.tried)
