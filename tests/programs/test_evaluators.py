"""What is evaluated: figures by hand, the same in any chunk, with and without a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import teachers
from kdjax.evaluation import linear_cka
from kdjax.evaluation.classification import agreement, classification, finalize
from kdjax.models import mlp, segformer
from kdjax.models.pretrained import decoder
from kdjax.outputs import Outputs
from kdjax.programs import evaluators
from kdjax.programs.distill import NO_TEACHER

VOCAB, ROWS, TIME = 20, 3, 70  # more positions than one chunk has
STUDENT = decoder(num_classes=VOCAB, width=8, depth=1, heads=1)
TEACHER_MODEL = decoder(num_classes=VOCAB, width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def setting():
  """(student's variables, teacher, batch with masked and unlabelled positions)."""
  tokens = jax.random.randint(jax.random.key(0), (ROWS, TIME), 0, VOCAB)
  labels = jnp.roll(tokens, -1, axis=1).at[:, -1].set(-1)
  batch = {
    "tokens": tokens,
    "label": labels,
    "mask": jax.random.bernoulli(jax.random.key(1), 0.8, (ROWS, TIME)),
    "domain": jnp.array([0, 1, 0]),
  }
  teacher = teachers.frozen(TEACHER_MODEL, TEACHER_MODEL.init(jax.random.key(3)))
  return STUDENT.init(jax.random.key(2)), teacher, batch


def tell(teacher, batch):
  return lambda taps: teacher.apply(teacher.frozen, (), batch, taps=taps)


def test_a_language_model_is_evaluated_as_its_whole_logits_would_be(setting):
  variables, teacher, batch = setting
  evaluate = evaluators.language(("a", "b"))(STUDENT, teacher)
  values = finalize(jax.jit(lambda v, b: evaluate(v, tell(teacher, b), b))(variables, batch))
  logits = jax.jit(lambda v: STUDENT.apply(v, batch)[0].logits)(variables)
  told = jax.jit(lambda b: tell(teacher, b)(frozenset({"logits"})).logits)(batch)
  where = batch["mask"] & (batch["label"] >= 0)
  figures = jax.jit(classification)
  wanted = finalize(
    figures(logits, batch["label"], where) | jax.jit(agreement)(logits, told, where)
  )
  for name in ("nll", "accuracy", "brier", "ece", "forward_kl", "agreement"):
    np.testing.assert_allclose(values[name], wanted[name], rtol=1e-4, atol=1e-6)
  theirs = finalize(figures(told, batch["label"], where))
  np.testing.assert_allclose(values["teacher/nll"], theirs["nll"], rtol=1e-4)
  second = where & (batch["domain"] == 1)[:, None]
  own = finalize(figures(logits, batch["label"], second))
  np.testing.assert_allclose(values["perplexity/b"], np.exp(own["nll"]), rtol=1e-4)


def test_without_a_teacher_or_with_one_domain_only_the_student_is_told_of(setting):
  variables, _, batch = setting
  evaluate = evaluators.language(("only",))(STUDENT, NO_TEACHER)
  names = set(jax.eval_shape(lambda v: evaluate(v, lambda taps: Outputs(), batch), variables))
  assert "nll" in names and not any("/only" in n or n.startswith("teacher/") for n in names)
  assert "forward_kl" not in names


def test_a_teacher_of_other_classes_is_evaluated_but_not_compared(setting):
  variables, _, batch = setting
  other = decoder(num_classes=VOCAB + 1, width=8, depth=1, heads=1)
  teacher = teachers.frozen(other, other.init(jax.random.key(4)))
  evaluate = evaluators.language()(STUDENT, teacher)
  names = set(jax.eval_shape(lambda v: evaluate(v, tell(teacher, batch), batch), variables))
  assert "teacher/nll" in names and "agreement" not in names


def image_sides(classes):
  """(student, its variables, teacher, batch) on small images; the last row is padding."""
  shape = {"num_classes": classes, "image_shape": (4, 4, 1)}
  student, model = mlp(hidden=(6,), **shape), mlp(hidden=(8,), **shape)
  teacher = teachers.frozen(model, model.init(jax.random.key(1)))
  images = jax.random.normal(jax.random.key(2), (9, 4, 4, 1))
  batch = {"image": images.at[8].set(jnp.nan), "label": jnp.arange(9) % classes}
  batch |= {"mask": jnp.arange(9) < 8, "corruption": jnp.array([0, 0, 0, 0, 1, 1, 2, 2, 1])}
  return student, student.init(jax.random.key(0)), teacher, batch


def test_images_are_told_with_top_five_and_how_alike_embeddings_are():
  student, variables, teacher, batch = image_sides(7)
  evaluate = evaluators.classifier(student, teacher)
  found = finalize(jax.jit(lambda v: evaluate(v, tell(teacher, batch), batch))(variables))
  taps = frozenset({"embedding"})
  own, _ = student.apply(variables, batch, taps=taps)
  told = tell(teacher, batch)(taps)
  want = float(linear_cka(own.embedding[:8], told.embedding[:8]))
  assert found["cka"] == pytest.approx(want, rel=1e-4)
  assert not any(name.startswith("cka/") for name in found)
  assert found["accuracy"] <= found["top5_accuracy"] <= 1 and "teacher/top5_accuracy" in found
  few, own, other, rows = image_sides(5)
  names = jax.eval_shape(
    lambda v: evaluators.classifier(few, other)(v, tell(other, rows), rows), own
  )
  assert "top5_accuracy" not in names and "cka/across" in names


def test_damaged_copies_are_told_apart_from_clean_images():
  student, variables, teacher, batch = image_sides(7)
  evaluate = evaluators.corrupted_images(("a", "b"))(student, teacher)
  found = finalize(jax.jit(lambda v: evaluate(v, tell(teacher, batch), batch))(variables))
  right = student.apply(variables, batch)[0].logits.argmax(-1) == batch["label"]
  assert found["accuracy"] == pytest.approx(float(right[:4].mean()))
  assert found["corruption_error"] == pytest.approx(1 - float(right[4:8].mean()))
  assert found["corruption_error/b"] == pytest.approx(1 - float(right[6:8].mean()))
  assert "teacher/corruption_error/a" in found


def test_places_are_counted_but_for_padded_images():
  shape = {"num_classes": 3, "image_shape": (8, 8, 1), "widths": (4,), "depths": (1,)}
  student = segformer(**shape, heads=(1,), reductions=(1,), decoder_width=4)
  variables = student.init(jax.random.key(0))
  teacher = teachers.frozen(student, variables)
  label = jax.random.randint(jax.random.key(1), (4, 4), -1, 3)
  batch = {"image": jax.random.normal(jax.random.key(2), (4, 8, 8, 1)).at[3].set(jnp.nan)}
  batch |= {"label": label, "mask": jnp.arange(4) < 3}
  evaluate = evaluators.label_maps(student, teacher)
  found = finalize(jax.jit(lambda v: evaluate(v, tell(teacher, batch), batch))(variables))
  logits = student.apply(variables, batch)[0].logits
  where = jnp.broadcast_to(batch["mask"][:, None], label.shape) & (label >= 0)
  right = (logits.argmax(-1) == label) & where
  assert found["accuracy"] == pytest.approx(float(right.sum() / where.sum()), abs=1e-6)
  assert 0 <= found["mean_iou"] == found["teacher/mean_iou"] <= 1 and found["agreement"] == 1
