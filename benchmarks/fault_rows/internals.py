"""Everything the rows import from charrnn besides its command line; `poisons` and `processes` patch more of it."""
# ruff: noqa: F401

from charrnn.config import CELLS, CorpusConfig, ModelConfig, TrainConfig
from charrnn.data.batches import Cursor
from charrnn.data.vocab import Vocab
from charrnn.errors import CharrnnError, ModelFileError
from charrnn.files import kernel_cache
from charrnn.hardware import available_cores
from charrnn.model.container import read_tensors, write_tensors
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.numerics.processor import has_fast_bfloat16
from charrnn.runs.folder import Run
from charrnn.runs.log import Log
from charrnn.runs.writer import StateSnapshot, Writer
from charrnn.training.state import ScalarState
