"""Plans as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdjax.plan.chips import Chip
from kdjax.plan.collectives import by_kind
from kdjax.plan.plan import Plan
from kdjax.plan.side import Side

_COMPILERS = {"cpu": "for simulated CPUs", "tpu": "for TPUs", "here": "for this machine's devices"}


def format_plan(plan: Plan, name: str, chip: Chip, compiler: str = "cpu") -> str:
  """One plan, a line each for parts, what is sent and times."""
  lines = [f"{_mesh(plan)} on {name}, a batch of {plan.batch_size:,}", "", "bytes of each device"]
  lines += [f"  {part:<14}{_size(size):>12}" for part, size in plan.memory.items()]
  share = plan.total / chip.memory
  lines += [f"  {'total':<14}{_size(plan.total):>12}  {share:.1%} of {_size(chip.memory)}"]
  lines += ["", "sent in a step (arrays as a whole, each as often as it is sent)"]
  for (kind, axes), size in by_kind(plan.collectives).items():
    lines.append(f"  {kind:<20}{' x '.join(axes):<16}{_size(size):>12}")
  if not plan.collectives:
    lines.append("  nothing")
  lines += ["", f"a step of {plan.flops:.3g} FLOPs takes at least"]
  lines += [f"  {part:<10}{_time(value):>12}" for part, value in plan.seconds.items()]
  if plan.teacher is not None:
    lines += [*_beside(plan.teacher, name, chip)]
  lines += [
    f"so {_time(plan.step_seconds)}, at most {plan.utilisation:.1%} of the chips' FLOPs",
    f"largest batch  {_batch(plan)}",
    f"compiled {_COMPILERS[compiler]} in {plan.compile_seconds:.0f} s",
  ]
  return "\n".join(lines)


def format_table(plans: Mapping[str, Plan], refused: Mapping[str, str], chip: Chip) -> str:
  """Plans side by side, and why layouts are missing."""
  head = (
    "layout",
    "mesh",
    "split",
    "state",
    "teacher",
    "temporary",
    "total",
    "fits",
    "sent",
    "step",
    "use",
  )
  rows = [(*head, "largest batch")]
  for name, plan in plans.items():
    memory = plan.memory
    state = sum(memory[part] for part in ("parameters", "optimiser", "other state"))
    temporary = sum(memory[part] for part in ("gradients", "loss chunk", "temporaries"))
    parts = [_size(size) for size in (state, memory["teacher"], temporary, plan.total)]
    fit = "yes" if fits(plan, chip) else "no"
    sent = _size(sum(each.sent for each in plan.collectives))
    times = (_time(plan.step_seconds), f"{plan.utilisation:.1%}", _batch(plan))
    rows.append((name, _mesh(plan), f"{plan.split:.0%}", *parts, fit, sent, *times))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  return "\n".join([*lines, *(f"{name}: {why}" for name, why in refused.items())])


def _beside(side: Side, name: str, chip: Chip) -> list[str]:
  sent, share = sum(each.sent for each in side.collectives), side.total / chip.memory
  return [
    f"and meanwhile the teacher, {_mesh(side)} of {name} of its own, for the next step",
    f"  {'total':<14}{_size(side.total):>12}  {share:.1%} of {_size(chip.memory)}",
    f"  {'sent':<14}{_size(sent):>12}",
    *(f"  {part:<10}{_time(value):>12}" for part, value in side.seconds.items()),
  ]


def as_json(plan: Plan, chip: Chip) -> dict[str, Any]:
  """A plan of plain values."""
  kinds = by_kind(plan.collectives)
  sent = [{"kind": kind, "axes": axes, "bytes": size} for (kind, axes), size in kinds.items()]
  told = {"collectives": sent, "fits": fits(plan, chip), "chip_memory": chip.memory}
  if plan.teacher is not None:
    theirs = [each._asdict() for each in plan.teacher.collectives]
    told["teacher"] = plan.teacher._asdict() | {"collectives": theirs}
  return plan._asdict() | told


def fits(plan: Plan, chip: Chip) -> bool:
  """Whether no device has to hold more than it can."""
  sides = [plan.total, plan.teacher.total if plan.teacher else 0]
  return max(sides) <= chip.memory


def _mesh(plan: Plan | Side) -> str:
  return ",".join(f"{axis}:{size}" for axis, size in plan.mesh.items() if size > 1) or "data:1"


def _batch(plan: Plan) -> str:
  return "any" if plan.largest_batch is None else f"{plan.largest_batch:,}"


def _size(count: float) -> str:
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if abs(count) >= scale:
      return f"{count / scale:.2f} {unit}"
  return f"{count:.0f} B"


def _time(seconds: float) -> str:
  return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
