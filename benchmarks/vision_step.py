"""Image distillation steps of kdjax beside the same mathematics in PyTorch eager: time and memory.

  python -m benchmarks.vision_step --pytorch=PYTHON [--cases=kd,at,deit] [--rounds=3] [--steps=10]

Three distillers, float32, images of 32 x 32 x 3 in batches of 64, 100 classes, two threads:

  kd    Hinton's, temperature 4: a ResNet-56 teaches a ResNet-20; SGD with momentum
  at    attention transfer over the maps of three stages, the same pair
  deit  the distillation token: DeiT-S teaches DeiT-Ti (patches of 4, 66 tokens); AdamW

Both sides start from the same weights and read the same batch; the losses of their first steps are
compared. They run in turn, each in a process of its own, PyTorch once with each memory format;
figures are medians over steps (and the quickest of them), then over rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

_RESNET = {"name": "resnet", "width": 16, "num_classes": 100}
_VIT = {"name": "vit", "patch": 4, "depth": 12, "pool": "distilled", "num_classes": 100}
_RESNETS = {
  "student": _RESNET | {"depth": 20},
  "teacher": _RESNET | {"depth": 56},
  "optimizer": "sgd",
}
CASES = {
  "kd": _RESNETS | {"loss": "hinton_kd"},
  "at": _RESNETS | {"loss": "attention_transfer"},
  "deit": {
    "student": _VIT | {"width": 192, "heads": 3},
    "teacher": _VIT | {"width": 384, "heads": 6},
    "optimizer": "adamw",
    "loss": "distillation_token",
  },
}
SIDES = ("kdjax", "contiguous_format", "channels_last")
COMPARED = 3  # first steps


def kdjax_step(case: dict, shared: str):
  """The step as the training loop compiles it; weights and batch are written to `shared`."""
  import jax
  import numpy as np
  import optax

  from kdjax import models, objectives, programs, teachers
  from kdjax.train.loop import compile_program
  from kdjax.train.memory import compile_ahead
  from kdjax.train.mesh import make_mesh, place

  def model(side: str):
    own = {key: value for key, value in case[side].items() if key != "name"}
    return getattr(models, case[side]["name"])(**own, image_shape=(32, 32, 3))

  random = np.random.default_rng(0)
  batch = {
    "image": random.normal(size=(64, 32, 32, 3)).astype(np.float32),
    "label": random.integers(0, 100, 64, np.int32),
  }
  large, student = model("teacher"), model("student")
  variables = large.init(jax.random.key(1))
  if large.init(jax.random.key(0)).state:  # running statistics of this batch, not those of 0 steps
    _, after = jax.jit(lambda v: large.apply(v, batch, taps=frozenset({"logits"}), train=True))(
      variables
    )
    moved = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, after, variables.state)
    variables = variables._replace(state=moved)
  teacher = teachers.frozen(large, variables)
  pairs = tuple((stage, stage) for stage in ("stage1", "stage2", "stage3"))
  objective = {
    "hinton_kd": objectives.hinton_kd,
    "attention_transfer": lambda: objectives.feature_kd(
      loss="attention_transfer", feature_weight=1000.0, pairs=pairs
    ),
    "distillation_token": objectives.distillation_token,
  }[case["loss"]]()
  tx = optax.sgd(0.01, momentum=0.9) if case["optimizer"] == "sgd" else optax.adamw(1e-4)
  program = programs.distill(student, objective, tx, teacher=teacher)
  compiled = compile_program(program, make_mesh(data=1), batch)
  state = compiled.init(jax.random.key(0))
  kept = {}
  for side, trees in {
    "student": (state.params, state.model_state),
    "teacher": (variables.params, variables.state),
  }.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
      kept[f"{side}/{jax.tree_util.keystr(path[1:], simple=True, separator='/')}"] = leaf
  np.savez(shared, **batch, **{name: np.asarray(leaf) for name, leaf in kept.items()})
  batch = place(batch, compiled.batch_sharding)
  compile_ahead(compiled.step, state, compiled.frozen, batch)

  def run():
    nonlocal state
    state, metrics = compiled.step(state, compiled.frozen, batch)
    return float(metrics["loss"][0])

  return run


def measure(arguments) -> None:
  """In a process of its own: steps to compare and warm up, then timed ones; one line of JSON."""
  case = CASES[arguments.cases]
  if arguments.side == "kdjax":
    run = kdjax_step(case, arguments.shared)
  else:
    from vision_step_pytorch import step

    run = step(case, arguments.shared, arguments.side)
  losses = [run() for _ in range(COMPARED)]
  times = []
  for _ in range(arguments.steps):
    started = time.perf_counter()
    run()
    times.append(time.perf_counter() - started)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  found = {"seconds": statistics.median(times), "quickest": min(times), "peak_gb": peak}
  print(json.dumps(found | {"losses": losses}))


def compare(case: str, arguments) -> None:
  """Runs the sides of one case in turn and prints what was found."""
  # The other side's Python may not have the project.
  from benchmarks.sides import ask
  from benchmarks.table import Row, emit

  found: dict[str, list[dict]] = {side: [] for side in SIDES}
  with tempfile.TemporaryDirectory() as folder:
    for _ in range(arguments.rounds):
      for side in SIDES:
        python = sys.executable if side == "kdjax" else arguments.pytorch
        options = {"side": side, "cases": case, "steps": arguments.steps}
        options["shared"] = Path(folder) / "shared.npz"
        found[side].append(ask(python, __file__, options)[0])
  print(f"{case}: {arguments.rounds} rounds of {arguments.steps} steps")
  units = {"seconds": "s", "quickest": "s", "peak_gb": "GB"}
  ours, *theirs = ({name: _median(own, name) for name in units} for own in found.values())
  for name, unit in units.items():
    each = ", ".join(f"{s} {t[name]:.3f}" for s, t in zip(SIDES[1:], theirs, strict=True))
    best = min(theirs, key=lambda own: own["seconds"])
    print(f"  {name:8s} kdjax {ours[name]:.3f} {unit}; {each}; ratio {ours[name] / best[name]:.3f}")
  best = min(theirs, key=lambda own: own["seconds"])
  names = {"seconds": ("time", 0.9), "peak_gb": ("peak memory", 0.6)}
  emit(
    Row(f"vision step, {case}, {what}", ours[name], best[name], units[name], "PyTorch eager", bar)
    for name, (what, bar) in names.items()
  )
  own, other = found["kdjax"][0]["losses"], found["contiguous_format"][0]["losses"]
  apart = max(abs(a - b) / abs(b) for a, b in zip(own, other, strict=True))
  print(f"  losses of the first {COMPARED} steps {own}, at most {apart:.1e} apart", flush=True)


def _median(found: list[dict], name: str) -> float:
  return statistics.median(own[name] for own in found)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pytorch", default=sys.executable, help="Python that has PyTorch")
  parser.add_argument("--cases", default=",".join(CASES), help="which, separated by commas")
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--shared", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.side:
    measure(arguments)
    return
  for case in arguments.cases.split(","):
    compare(case, arguments)


if __name__ == "__main__":
  main()
