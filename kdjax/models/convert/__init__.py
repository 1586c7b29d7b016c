"""Real checkpoints in and out: Hugging Face folders (both ways) and GGUF files (read)."""

from kdjax.models.convert.checkpoint import Checkpoint as Checkpoint
from kdjax.models.convert.export import write_checkpoint as write_checkpoint
from kdjax.models.convert.files import open_checkpoint as open_checkpoint
from kdjax.models.convert.specs import check_expressible as check_expressible
from kdjax.models.convert.specs import config_of as config_of
from kdjax.models.convert.specs import spec_of as spec_of
from kdjax.models.convert.weights import check_weights as check_weights
from kdjax.models.convert.weights import load_weights as load_weights
from kdjax.models.convert.weights import tensors_of as tensors_of
