"""Emulated fine-tuning as a teacher: a large base with what a small model learnt of docstrings.

python -m launch.train --config=configs/eft.py --workdir=runs/eft
python -m launch.compare --config=configs/eft.py --workdir=runs/eft_compare --seeds=3

Two base models, large and small, learn the code and docstrings of Python's library; the small one
is then fine-tuned on docstrings alone. The student learns docstrings from the large base with the
small models' difference added to its logits, in the baseline from the large base as it is. The
report has the base (`teacher`), the small models (`reference`, `tuned`), their emulation
(`emulated`) and what it emulates, the large base fine-tuned itself (`target`), all on held-out
docstrings.

Text by checkpoints, drafted by the small model:

  python -m launch.generate --checkpoint=LARGE_BASE --emulate_tuned=SMALL_TUNED \\
    --emulate_reference=SMALL_BASE --draft_tokens=4 --prompt="..."
"""

import ml_collections

from configs import small_text

DOCS = {"docs": {"kind": "python", "field": "docs"}}
BOTH = {"code": {"kind": "python", "field": "code"}} | DOCS


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: Llama 2 of 70B and 7B parameters in `models/`.

  The paper decodes and trains no student; `paper` has its models at its weight 1 as the teacher
  of a small one, on chats in `data/chats`.
  """
  config = small_text.get_config()
  config.baseline = {"teacher": {"kind": "frozen"}}
  config.compare.names = {"baseline": "student_of_base", "method": "student_of_emulation"}
  config.compare.title = "Docstrings from an emulated fine-tune, against the base"
  config.teacher.kind = "emulated"
  if variant == "paper":
    config.data.update(
      {
        "tokenizer": "models/Llama-2-7b-hf",
        "sequence_length": 1024,
        "max_documents": None,
        "pack": "none",
        "sources": {"chats": {"kind": "chat", "path": "data/chats"}},
      }
    )
    model = lambda name: {"name": "pretrained", "path": f"models/{name}"}  # noqa: E731
    config.student = model("TinyLlama-1.1B")
    config.teacher.model = model("Llama-2-70b-hf")
    config.teacher.dtype = "bfloat16"
    config.teacher.fine_tune = None
    config.teacher.emulate = {
      "reference": {"model": model("Llama-2-7b-hf")},
      "tuned": ({"model": model("Llama-2-7b-chat-hf")},),
      "weights": (1.0,),
    }
    config.compare.vectorize = False
    return config
  if variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.data.sources = DOCS
  learn = {"objective": {"name": "cross_entropy", "chunk_size": 32}}
  whole = {"total_steps": 600, "data": {"sources": BOTH}} | learn
  more = {"total_steps": 200, "optimizer": {"learning_rate": 1e-3}} | learn
  config.teacher.train = whole
  config.teacher.emulate = {
    "reference": {
      "model": {"name": "pretrained", "path": small_text.SMOLLM2}
      | small_text.SIZES
      | {"width": 48, "mlp_width": 96},
      "train": whole | {"optimizer": {"learning_rate": 3e-3}},
    },
    "tuned": ({"train": more},),
    "weights": (1.0,),
    "target": {"train": more},
  }
  return config
