"""A teacher on devices of its own: the same steps and evaluations as beside the student."""

import jax
import numpy as np
import optax
import pytest

from kdjax import models, objectives, programs, teachers
from kdjax.errors import KdjaxError
from kdjax.programs.apart import apart
from kdjax.programs.evaluators import HEADED, classifier, language
from kdjax.train.feed import AHEAD, Feed
from kdjax.train.loop import compile_program, evaluate
from kdjax.train.mesh import make_mesh, meshes_of

TEXT = {"num_classes": 32, "heads": 4, "max_positions": 64}
VIT = {"image_shape": (8, 8, 1), "num_classes": 10, "patch": 4, "heads": 4, "mlp_ratio": 2}
LOGITS = frozenset({"logits", "embedding"})


def text():
  tokens = np.random.default_rng(0).integers(0, 32, (8, 17), np.int32)
  mask = np.ones((8, 16), bool)
  mask[:, -3:] = False
  return {"tokens": tokens[:, :-1], "label": tokens[:, 1:], "mask": mask}


def images(views=1):
  image = np.random.default_rng(0).random((8, 8, 8, 1), np.float32)
  one = {"image": image, "label": np.int32(np.arange(8) % 10), "mask": np.ones(8, bool)}
  return one if views == 1 else one | {"second_image": image[:, ::-1]}


def decoders():
  return models.decoder(width=16, depth=2, **TEXT), models.decoder(width=32, depth=3, **TEXT)


def vits():
  return models.vit(width=16, depth=2, **VIT), models.vit(width=32, depth=3, **VIT)


CASES = {
  "chunks of logits": (
    decoders,
    text,
    lambda: objectives.logit_kd(loss="forward_kl", chunk_size=5),
    1,
  ),
  "micro-batches": (
    decoders,
    text,
    lambda: objectives.logit_kd(loss="forward_kl", chunk_size=5),
    2,
  ),
  "relations of a layer": (decoders, text, lambda: objectives.minilm(causal=True), 2),
  "images": (vits, images, lambda: objectives.hinton_kd(temperature=2.0), 1),
  "two views": (vits, lambda: images(2), lambda: objectives.multi_level(), 1),
}


def both(case):
  """(program, its batch) with the teacher beside the student, and with it apart."""
  sides, batch, objective, accumulate = CASES[case]
  (student, model), batch, objective = sides(), batch(), objective()
  teacher = teachers.frozen(model, model.init(jax.random.key(1)))
  headed = "tokens" in batch
  told, elsewhere = apart(
    teacher, objective.taps.teacher, HEADED if headed else LOGITS & teacher.taps, batch
  )
  options = {"evaluator": language() if headed else classifier, "accumulate": accumulate}
  made = [
    programs.distill(student, objective, optax.sgd(1.0), teacher=each, **options)
    for each in (teacher, told)
  ]
  return made[0], made[1]._replace(apart=elsewhere), batch


def stepped(program, batch, mesh, other=None, steps=2):
  """(weights and metrics of the last step, evaluation)."""
  feed = Feed(program, mesh, other)
  own = compile_program(program, mesh, feed.shapes(batch))
  own = own._replace(frozen=jax.device_put(program.frozen, own.frozen_shardings))
  state = own.init(jax.random.key(0))
  for _ in range(steps):
    state, metrics = own.step(state, own.frozen, feed.train(batch))
    feed.stepped(metrics)
  one = {key: x for key, x in batch.items() if key != "second_image"}
  return jax.device_get((state.params, metrics)), evaluate(own, state, feed, [one])


@pytest.fixture
def devices():
  return jax.devices()


@pytest.mark.parametrize("case", CASES)
def test_steps_and_evaluations_are_those_of_a_teacher_beside_the_student(case, devices):
  beside, elsewhere, batch = both(case)
  wanted, told = stepped(beside, batch, make_mesh(data=1))
  student, teacher = make_mesh(data=4, devices=devices), make_mesh(tensor=4, devices=devices[4:])
  given, own = stepped(elsewhere, batch, student, teacher)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), given, wanted)
  assert own.keys() == told.keys() and any(name.startswith("teacher/") for name in own)
  for name, value in told.items():
    np.testing.assert_allclose(own[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


def test_no_weight_of_the_teacher_but_its_head_is_on_the_students_devices(devices):
  _, program, batch = both("chunks of logits")
  student, teacher = make_mesh(data=4, devices=devices), make_mesh(tensor=4, devices=devices[4:])
  feed = Feed(program, student, teacher)
  assert [x.shape for x in jax.tree.leaves(program.frozen.teacher)] == [(32, 32)]
  for leaf in jax.tree.leaves(feed.frozen):
    assert leaf.devices() <= set(devices[4:])
  told = feed.train(batch)["told"]
  assert told.hidden.shape == (8, 16, 32) and told.hidden.devices() == set(devices[:4])
  assert told.logits is None and told.head is None


def test_the_teacher_runs_a_bounded_number_of_steps_ahead():
  _, program, _ = both("images")
  feed, waited = Feed(program, make_mesh(data=1), make_mesh(data=1)), []

  class Result:
    def __init__(self, number):
      self.number = number

    def block_until_ready(self):
      waited.append(self.number)

  for number in range(5):
    feed.stepped(Result(number))
    assert waited == list(range(number + 1 - AHEAD))


def test_layers_that_run_inside_the_students_step_cannot_be_elsewhere():
  _, model = decoders()
  teacher = teachers.frozen(model, model.init(jax.random.key(1)))
  with pytest.raises(KdjaxError, match=r"\['segment'\].*config.teacher.mesh.* set its sizes to 0"):
    apart(teacher, frozenset({"segment"}), HEADED, text())


def test_rows_that_were_not_asked_about_are_refused():
  _, program, batch = both("images")
  with pytest.raises(KdjaxError, match=r"config.teacher.mesh: .* asked about other rows"):
    jax.eval_shape(program.init, jax.random.key(0), batch)


def config(mesh, teacher_mesh):
  own = {"mesh": {"data": 0, "fsdp": 0, "sequence": 0, "tensor": 0} | teacher_mesh}
  return {"mesh": {"fsdp": 1, "sequence": 1, "tensor": 1} | mesh, "teacher": own}


def test_the_teacher_takes_the_last_devices_and_the_student_what_is_left(devices):
  student, teacher = meshes_of(config({"data": -1}, {"tensor": 2}))
  assert list(student.devices.flat) == devices[:6] and student.shape["data"] == 6
  assert list(teacher.devices.flat) == devices[6:] and teacher.shape["tensor"] == 2
  assert meshes_of(config({"data": -1}, {}))[1] is None


@pytest.mark.parametrize(
  ("mesh", "own", "told"),
  [
    ({"data": -1}, {"data": 8}, "takes 8 of 8 devices.*one device be left for the student"),
    ({"data": -1}, {"data": -1}, "every size must be positive"),
    ({"data": 4}, {"data": 6}, "config.mesh = .* needs 4 devices, but 2 are there"),
    ({"data": -1}, {"data": 2, "tensor": -4}, "every size must be positive"),
  ],
)
def test_meshes_that_do_not_fit_are_told(mesh, own, told):
  with pytest.raises(KdjaxError, match=told):
    meshes_of(config(mesh, own))
