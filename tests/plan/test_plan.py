"""Plans of a small job, and what is wrong with one."""

import json
import re

import jax
import pytest

from configs import digits_kd
from kdjax.errors import KdjaxError
from kdjax.plan.chips import CHIPS, chip_of
from kdjax.plan.collectives import by_kind
from kdjax.plan.plan import (
  largest_batch,
  lay_out,
  layouts,
  memory_parts,
  parse_mesh,
  plan,
  shard_bytes,
)
from kdjax.plan.table import as_json, fits, format_plan, format_table

DATA, SPLIT = parse_mesh("data:8"), parse_mesh("fsdp:8")


def config(**fields):
  """Digits with a teacher that is a wide network of one layer."""
  own = digits_kd.get_config().to_dict() | {"batch_size": 64} | fields
  own["teacher"]["model"] = {"name": "mlp", "hidden": (128,)}
  return own


@pytest.fixture(scope="module")
def plans():
  with jax.numpy_dtype_promotion("standard"):  # as every test here has it (see conftest.py)
    steps = {"data": lay_out(config(), DATA), "fsdp": lay_out(config(), SPLIT)}
    return steps, {name: plan(step, CHIPS["v5e"]) for name, step in steps.items()}


@pytest.fixture(scope="module")
def gradient_bytes(plans):
  step = plans[0]["data"].compiled
  return shard_bytes(step.abstract_state.params, step.state_shardings.params)


def test_the_parts_are_what_the_compiler_plans(plans):
  steps, found = plans
  for name, step in steps.items():
    frozen, state = step.compiled.frozen, step.compiled.abstract_state
    executable = step.compiled.step.lower(state, frozen, step.batch).compile()
    own = executable.memory_analysis()
    whole = own.argument_size_in_bytes + own.output_size_in_bytes - own.alias_size_in_bytes
    whole += own.temp_size_in_bytes
    parts = memory_parts(step, executable)
    assert sum(parts.values()) == found[name].total == pytest.approx(whole, rel=0.1)
    assert all(size >= 0 for size in parts.values()), parts
    read = ("parameters", "optimiser", "other state", "teacher", "batch")
    told = sum(parts[part] for part in read)
    assert told == pytest.approx(own.argument_size_in_bytes, rel=0.1)


def test_splitting_makes_the_state_smaller(plans, gradient_bytes):
  _, found = plans
  assert found["data"].memory["parameters"] == gradient_bytes
  assert found["fsdp"].memory["parameters"] < gradient_bytes / 4
  assert found["fsdp"].memory["teacher"] < found["data"].memory["teacher"] / 4
  assert found["data"].split == 0 and 0.9 < found["fsdp"].split < 1  # biases are not split
  assert found["fsdp"].flops == found["data"].flops


def test_data_parallel_reduces_the_gradient(plans, gradient_bytes):
  kinds = by_kind(plans[1]["data"].collectives)
  assert set(kinds) == {("all-reduce", ("data",))}
  assert gradient_bytes <= kinds["all-reduce", ("data",)] < gradient_bytes + 200  # and the metrics


def test_fsdp_gathers_weights_and_reduces_no_whole_gradient(plans, gradient_bytes):
  kinds = by_kind(plans[1]["fsdp"].collectives)
  assert kinds["all-gather", ("fsdp",)] > 0
  assert kinds["reduce-scatter", ("fsdp",)] > 0.9 * gradient_bytes
  assert kinds["all-reduce", ("fsdp",)] < 0.1 * gradient_bytes  # biases and metrics


def test_times_are_a_roofline(plans):
  found, chip = plans[1]["data"], CHIPS["v5e"]
  assert found.seconds["compute"] == found.flops / 8 / chip.flops
  assert found.step_seconds == max(found.seconds.values())
  assert 0 < found.utilisation <= 1
  # Four products and the student's three (one of them with the input, which needs no gradient).
  student, teacher = 64 * 32 + 32 * 10, 64 * 128 + 128 * 10
  assert found.flops == 64 * 2 * (2 * student + 32 * 10 + teacher)


def test_the_largest_batch_is_on_a_line_through_two():
  assert largest_batch(8, 1000, 1400, 2000, 4) == 28  # 600 + 50 a row
  assert largest_batch(8, 1000, 1400, 2099, 4) == 28
  assert largest_batch(8, 1000, 1400, 500, 4) == 0
  assert largest_batch(8, 1000, 1000, 2000, 4) is None


def test_layouts_use_as_many_devices_each_and_none_twice():
  found = layouts(parse_mesh("data:16,fsdp:16"))
  assert {name: own.sizes for name, own in found.items()} == {
    "asked for": parse_mesh("data:16,fsdp:16"),
    "data-parallel": parse_mesh("data:256"),
    "ZeRO-1 and 2": parse_mesh("data:256"),
    "ZeRO-3": parse_mesh("fsdp:256"),
    "ZeRO-3 in groups": parse_mesh("data:32,fsdp:8"),
    "tensor-parallel": parse_mesh("data:32,tensor:8"),
  }
  assert [name for name, own in found.items() if own.changes] == ["ZeRO-1 and 2"]
  assert "data-parallel" not in layouts(DATA)
  assert layouts(parse_mesh("data:1")).keys() == {"asked for"}


def test_split_moments_scatter_the_gradient_and_gather_the_weights(plans, gradient_bytes):
  split = layouts(DATA)["ZeRO-1 and 2"]
  found = plan(lay_out(config() | split.changes, split.sizes), CHIPS["v5e"])
  whole = plans[1]["data"]
  assert found.memory["parameters"] == whole.memory["parameters"] == gradient_bytes
  assert found.memory["optimiser"] < whole.memory["optimiser"] / 4
  kinds = by_kind(found.collectives)
  assert kinds["reduce-scatter", ("data",)] > 0.9 * gradient_bytes
  assert kinds["all-gather", ("data",)] > 0.9 * gradient_bytes
  assert kinds.get(("all-reduce", ("data",)), 0) < 0.1 * gradient_bytes


def test_tables_and_json_hold_the_same(plans):
  found, chip = plans[1], CHIPS["v5e"]
  told = json.loads(json.dumps(as_json(found["fsdp"], chip)))
  assert told["total"] == sum(told["memory"].values()) and told["fits"]
  assert {each["kind"] for each in told["collectives"]} >= {"all-gather", "reduce-scatter"}
  text = format_plan(found["fsdp"], "v5e", chip)
  assert "fsdp:8 on v5e, a batch of 64" in text and "reduce-scatter" in text
  table = format_table(found, {"tensor": "why not"}, chip)
  assert [re.split("  +", line)[0] for line in table.splitlines()] == [
    "layout", "data", "fsdp", "tensor: why not",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("data:2,fdsp:4", "no axis 'fdsp'.*did you mean 'fsdp'"),
    ("data:2,data:4", "axis 'data' twice"),
    ("data:0", "positive number of devices"),
    ("data", "positive number of devices"),
    ("data:-1", "positive number of devices"),
    ("", "no axis ''"),
  ],
)
def test_a_mesh_that_is_none(text, message):
  with pytest.raises(KdjaxError, match=message):
    parse_mesh(text)


def test_a_chip_that_is_not_known():
  with pytest.raises(KdjaxError, match=r"--chip = 'v5'.*did you mean 'v5[ep]'.*A100-80G"):
    chip_of("v5")


def test_a_batch_that_the_mesh_does_not_divide():
  with pytest.raises(KdjaxError, match=r"batch_size = 60 is not divisible by the 8 devices"):
    lay_out(config(batch_size=60), DATA)
  odd = config()["eval"] | {"batch_size": 12}
  with pytest.raises(KdjaxError, match=r"config.eval.batch_size = 12 is not divisible by the 8"):
    lay_out(config(eval=odd), DATA)


def test_a_teacher_on_devices_of_its_own_is_planned_beside_the_student():
  sizes = {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 1}
  own = config()["teacher"] | {"mesh": {"data": 2, "fsdp": 0, "sequence": 0, "tensor": 0}}
  chip = CHIPS["v5e"]
  apart = plan(lay_out(config(teacher=own), sizes), chip)
  beside = plan(lay_out(config(), sizes), chip)
  assert apart.teacher.mesh == {"data": 2, "fsdp": 1, "sequence": 1, "tensor": 1}
  assert apart.memory["teacher"] == 0 and apart.teacher.total > beside.memory["teacher"] > 0
  assert apart.flops + apart.teacher.flops == beside.flops  # the same products, elsewhere
  both = [*apart.seconds.values(), *apart.teacher.seconds.values()]
  assert apart.step_seconds == max(both)
  said = format_plan(apart, "v5e", chip)
  assert "and meanwhile the teacher, data:2 of v5e of its own, for the next step" in said
  assert as_json(apart, chip)["teacher"]["mesh"]["data"] == 2
  assert not fits(apart, chip._replace(memory=apart.teacher.total - 1)) and fits(apart, chip)
