"""The page of an exported model: it writes text in any browser, without a server.

The page holds the model as arrays in fewer bytes (model/quantization.py), compressed and in base64, and the engine
that draws from them (network.js, drawing.js, engine.js), which runs in a worker. The characters, the labels, the title
and the card are untrusted.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from charrnn.config import PagePrecision, SampleConfig
from charrnn.model.file import ModelFile
from charrnn.model.ngrams import Arrays
from charrnn.model.quantization import cut_ngrams, restore, store_ngrams, store_weights
from charrnn.pages.colouring import SCALES
from charrnn.pages.page import json_for_script, read_resource, render_page
from charrnn.text.characters import END, label, name

MAX_PAGE_BYTES = 4_000_000  # of a page with n-grams, unless the user says more
_MAX_OPTIONS = 30  # labels in a menu; more are a field that completes what is typed
_MAX_CARD_BYTES = 1 << 14  # of a title and a card
_FORMAT = 1


@dataclass(frozen=True)
class StoredModel:
    """A model as a page holds it. exact: its n-grams are cut, its numbers aren't rounded; arrays: what is stored."""

    exact: ModelFile
    arrays: Arrays

    @property
    def rounded(self) -> ModelFile:
        """The model that the page computes with."""
        return restore(self.exact, self.arrays)


def store_model(file: ModelFile, precision: PagePrecision, *, max_ngram_bytes: int | None) -> StoredModel:
    """Round a model, and cut its n-grams to the longest length that fits.

    max_ngram_bytes: what the n-grams may add to the page; None: as much as leaves the page below MAX_PAGE_BYTES.
    """
    weights = store_weights(file, precision)
    best = StoredModel(cut_ngrams(file, 0), weights)
    num_bytes = len(pack(best))
    others = len(render_player(best, "", ()).encode()) - num_bytes + _MAX_CARD_BYTES
    limit = MAX_PAGE_BYTES - others if max_ngram_bytes is None else num_bytes + max_ngram_bytes
    for order in range(1, file.ngram_order + 1):
        cut = cut_ngrams(file, order)
        longer = StoredModel(cut, weights | store_ngrams(cut, precision))
        if len(pack(longer)) > limit:
            break
        best = longer
    return best


def pack(model: StoredModel) -> str:
    """Encode a stored model as text: the base64 of its compressed payload, which docs/formats.md describes."""
    file, arrays = model.exact, dict(sorted(model.arrays.items()))  # a model file's tensors come in any order
    header = {
        "format": _FORMAT,
        "cell": file.config.cell,
        "hidden_size": file.config.hidden_size,
        "num_layers": file.config.num_layers,
        "chars": list(map(ord, file.vocab.chars)),
        "labels": [[label(char), name(char)] for char in file.vocab.chars],
        "tensors": [[name, str(array.dtype), array.shape] for name, array in arrays.items()],
    }
    code = json.dumps(header).encode()
    parts = [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays.values()]
    return base64.b64encode(zlib.compress(b"".join([len(code).to_bytes(4, "little"), code, *parts]), 9)).decode()


def engine_source() -> str:
    """Return the script of the page's worker."""
    return "".join(map(read_resource, ("network.js", "drawing.js", "engine.js")))


def render_player(model: StoredModel, title: str, card: Sequence[tuple[str, str]]) -> str:
    """Render the page. Equal models give equal pages."""
    vocab, defaults = model.exact.vocab, SampleConfig()
    has_documents = END in vocab.chars
    facts = {
        "unit": vocab.unit,
        "documents": has_documents,
        "labels": list(model.exact.labels),
        "levels": SCALES["surprisal"].limits,
        "defaults": {
            "length": -1 if has_documents else defaults.length,
            "temperature": defaults.temperature,
            "topK": defaults.top_k,
            "topP": defaults.top_p,
            "minP": defaults.min_p,
            "noRepeat": defaults.no_repeat_ngram,
        },
    }
    return render_page(
        "player",
        scripts=("written.js",),
        policy="worker-src blob:; ",
        title=title,
        card=card,
        unit=vocab.unit,
        num_labels=len(model.exact.labels),
        max_options=_MAX_OPTIONS,
        levels=SCALES["surprisal"].legend(),
        facts=json_for_script(facts),
        engine=Markup(engine_source()),
        model=pack(model),
    )
