"""A trained student as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from kdjax.errors import KdjaxError
from kdjax.models.convert import config_of, tensors_of, write_checkpoint
from kdjax.train.build import build_model
from kdjax.train.config import Config, check_config
from kdjax.train.mesh import TEACHER_RULES, make_mesh
from kdjax.train.pretrained import load_model
from kdjax.train.streams import load_data


def export_checkpoint(config: Config, folder: Path, out: Path) -> Path:
  """Writes a run's student, with its tokenizer, as a folder that transformers loads.

  Args:
    config: the run's config.
    folder: of the run (or its checkpoints).
    out: to be made; an empty folder or an earlier export is replaced.

  Returns:
    `out`.

  Raises:
    KdjaxError: no checkpoint there, a student that has no such format, or `out` holds other files.
  """
  check_config(config)
  data = load_data(config["data"]).whole
  model = build_model(config["student"], data, "config.student")
  if model.spec is None:
    raise KdjaxError(
      f"config.student.name = {config['student']['name']!r} has no Hugging Face format; what can be"
      " exported is a language model (pretrained, decoder) or an image model but mlp and resnet"
    )
  weights = load_model(folder, model, make_mesh(**config["mesh"]), TEACHER_RULES)
  if model.merged is not None:
    weights = model.merged(weights._replace(frozen=model.start().frozen))
  tokenizer = getattr(data, "tokenizer", None)
  described = config_of(model.spec)
  if tokenizer is not None:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    described |= {name: value for name, value in ids.items() if value is not None}
  return write_checkpoint(out, described, tensors_of(model, weights), tokenizer=tokenizer)
