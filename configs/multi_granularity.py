"""Multi-granularity revision: corrected texts, clipped KL and words, against none of the three.

python -m launch.train --config=configs/multi_granularity.py --workdir=runs/multi_granularity
python -m launch.compare --config=configs/multi_granularity.py --seeds=3 --workdir=runs/revision_3

Every step learns from texts that the student writes and from those of the data. The method lets the
teacher correct the worst token of each written text, clips the forward KL to a window that a small
network chooses, and compares neighbouring tokens of one word. The baseline does the same without:
texts as they were written, the whole forward KL, tokens one by one; labels teach both.
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: GPT-2 XL into GPT-2 on Dolly, with DistiLLM's schedule.

  Published are one round of correction (3 and 5 gain little), the three terms' weights of 1 and the
  schedule. Spans are words, read off the vocabulary, where the paper's are phrases of a chunker.
  """
  config = small_text.distilled_by(
    variant, "forward_kl", "Multi-granularity revision against plain KL on uncorrected texts"
  )
  config.objective = {
    "name": "multi_granularity",
    "kd_weight": 1.0,  # published
    "span_weight": 1.0,  # published
    "ce_weight": 1.0,  # published
    "chunk_size": 32,
  }
  if variant == "paper":
    program = {
      "name": "adaptive_replay",
      "prompt_length": 256,
      "validate_every": 357,
    }
  else:
    program = {"name": "on_policy", "prompt_length": 16, "fraction": 1.0, "keep_data": True}
  config.program = program | {"corrections": 1}  # published
  # A window of the whole mass, which leaves the network nothing to choose, is the forward KL.
  config.baseline = {
    "program": program,
    "objective": {
      "name": "multi_granularity",
      "span_weight": 0.0,
      "least_mass": 1.0,
      "softness": 1e-6,
      "chunk_size": 32,
    },
  }
  config.compare.names = {"baseline": "student_plain", "method": "student_revised"}
  config.compare.vectorize = False
  return config
