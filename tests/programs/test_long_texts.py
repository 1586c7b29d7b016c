"""Texts that several devices share: the same step, with keys and values alone gathered."""

import jax
import numpy as np
import optax
import pytest

from kdjax import models, objectives, programs, teachers
from kdjax.errors import KdjaxError
from kdjax.plan.collectives import collectives
from kdjax.train.loop import compile_program
from kdjax.train.mesh import check_sequence, make_mesh, place

ROWS, TOKENS, WIDTH, CLASSES = 4, 64, 16, 32
OPTIONS = {"num_classes": CLASSES, "heads": 4, "kv_heads": 2, "max_positions": 512}
STUDENT = models.decoder(width=WIDTH, depth=2, **OPTIONS)
TEACHER = models.decoder(width=2 * WIDTH, depth=3, **OPTIONS)


def batch(tokens=TOKENS, packed=True):
  text = np.random.default_rng(0).integers(0, CLASSES, (ROWS, tokens + 1), np.int32)
  own = {"tokens": text[:, :-1], "label": text[:, 1:], "mask": np.ones((ROWS, tokens), bool)}
  if packed:
    own["mask"][:, -5:] = False
    own["segment_ids"] = np.int32(np.arange(tokens) >= tokens // 3)[None].repeat(
      ROWS, 0
    ) + np.int32(1)
  return own


def compiled(sizes, text):
  teacher = teachers.frozen(TEACHER, TEACHER.init(jax.random.key(1)))
  objective = objectives.logit_kd(loss="forward_kl", chunk_size=5)
  program = programs.distill(STUDENT, objective, optax.sgd(1.0), teacher=teacher)
  return compile_program(program, make_mesh(**sizes), text)


def stepped(sizes, text):
  """The student's weights and the loss after a step."""
  own = compiled(sizes, text)
  state = own.init(jax.random.key(0))
  state, metrics = own.step(state, own.frozen, place(text, own.batch_sharding))
  return jax.device_get((state.params, metrics))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
  "sizes",
  [{"data": 1, "sequence": 4}, {"data": 2, "sequence": 2, "tensor": 2}, {"fsdp": 2, "sequence": 4}],
  ids=str,
)
def test_a_step_is_that_of_one_device(sizes, packed):
  text = batch(packed=packed)
  given, wanted = stepped({"data": 1} | sizes, text), stepped({"data": 1}, text)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), given, wanted)


def test_no_device_has_more_than_its_part_but_of_keys_and_values():
  text = batch(packed=False)
  own = compiled({"data": 2, "sequence": 4}, text)
  program = own.step.lower(own.abstract_state, own.frozen, text).compile()
  found = collectives(program.as_text(), make_mesh(data=2, sequence=4))
  gathered = [e for e in found if e.kind == "all-gather" and "sequence" in e.axes]
  # Of a device's two rows the keys or values of all places: in float32, two heads of 4 or 8.
  assert {each.bytes for each in gathered} == {4 * 2 * TOKENS * 2 * size for size in (4, 8)}


def test_memory_is_that_of_a_part():
  def temporary(sizes):
    text = batch(512, packed=False)
    own = compiled(sizes, text)
    program = own.step.lower(own.abstract_state, own.frozen, text).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert temporary({"data": 1, "sequence": 8}) < 0.2 * temporary({"data": 1})


@pytest.mark.parametrize(
  ("data", "told"), [({}, "are no texts"), ({"sequence_length": 30}, "have sequence_length = 30")]
)
def test_what_cannot_be_shared_is_told(data, told):
  with pytest.raises(KdjaxError, match=rf"config.mesh.sequence = 4 .* config.data {told}"):
    check_sequence(data, make_mesh(data=2, sequence=4))
