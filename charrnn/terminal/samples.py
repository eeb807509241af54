"""Samples on stdout: as text, piece by piece, or as JSON objects."""

import base64
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from charrnn.events import bits
from charrnn.terminal import console
from charrnn.text.characters import valid_unicode

if TYPE_CHECKING:
    from charrnn.config import SampleConfig
    from charrnn.data.vocab import Vocab
    from charrnn.sampling.streams import Stream


@dataclass(frozen=True)
class Output:
    """How samples are printed. echo: after their prompts; null: with a NUL at the end; quiet: without notes.

    model, precision: what a JSON object says about the model.
    """

    vocab: "Vocab"
    model: str
    precision: str
    json: bool = False
    echo: bool = True
    null: bool = False
    quiet: bool = False

    def note_seed(self, settings: Mapping[str, Any], config: "SampleConfig") -> None:
        """Print the seed that was chosen, unless the settings that were given have one or JSON shows it."""
        if "seed" not in settings and not self.quiet and not self.json:
            console.note(f"seed {config.seed}")

    def write_all(self, samples: "Iterable[tuple[Iterable[str], Stream]]", *, separated: bool) -> None:
        """Print samples, each given as pieces of its text and its stream. separated: by blank lines, unless by NUL."""
        for index, (pieces, stream) in enumerate(samples):
            if index > 0 and separated and not (self.json or self.null):
                console.write(b"\n")
            self.write(pieces, stream)

    def write(self, pieces: Iterable[str], stream: "Stream") -> None:
        """Print one sample."""
        if self.json:
            console.result_json(self.record("".join(pieces), stream))
            return
        config = stream.opening.config
        start = [config.prompt] if self.echo and config.prompt else []
        text = _without_last_newline(pieces) if self.null and config.lines else pieces
        console.stream(itertools.chain(start, text), null=self.null)

    def record(self, text: str, stream: "Stream") -> dict[str, Any]:
        """Return a complete sample as a JSON object."""
        config = stream.opening.config
        apart = ("prompt", "label", "seed")  # have fields of their own
        settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in apart}
        settings |= {"stop": list(map(valid_unicode, config.stop)), "precision": self.precision}
        return {
            "text": valid_unicode(text),
            "bytes": base64.b64encode(console.faithful(text)).decode() if self.vocab.has_bytes else None,
            "prompt": valid_unicode(config.prompt),
            "label": stream.opening.label,
            "seed": stream.seed,
            "stream": stream.number,
            "settings": settings,
            "num_chars": len(self.vocab.to_chars(text)),
            "seconds": stream.seconds,
            "bits_per_char": bits(stream.nats / stream.num_drawn) if stream.num_drawn else None,
            "log_weight": stream.log_weight,
            "chars": [one._asdict() for one in stream.predictions] if stream.predictions else None,
            "model": self.model,
        }


def _without_last_newline(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without the newline at its end."""
    newline = ""
    for piece in pieces:
        text = newline + piece
        newline = "\n" if text.endswith("\n") else ""
        yield text.removesuffix("\n")
