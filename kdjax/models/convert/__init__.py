"""Real checkpoints in and out: Hugging Face folders (both ways) and GGUF files (read)."""

from kdjax.models.convert.export import write_checkpoint as write_checkpoint
from kdjax.models.convert.files import Checkpoint as Checkpoint
from kdjax.models.convert.files import open_checkpoint as open_checkpoint
