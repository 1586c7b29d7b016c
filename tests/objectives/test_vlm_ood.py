"""Large vision-language distillation against the official code, and held-out labels."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.evaluation import retrieved
from kdjax.losses._common import unit
from kdjax.objectives import base_cross_entropy, image_text_contrastive, vlm_ood
from kdjax.objectives.base import counts, total
from kdjax.objectives.vlm_ood import squared_distance, top_classes_kl
from kdjax.outputs import Head, Outputs
from tests.objectives.helpers import applied, labelled, outputs

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "clip_distillers.npz"
TERMS = ("cls", "mse", "contrast", "align")


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


def only(*names, **options):
  return vlm_ood(**{f"{name}_weight": float(name in names) for name in TERMS} | options)


def sides(reference):
  head = Head(unit(jnp.asarray(reference["vlm_texts"])), tied=True)
  teacher = Outputs(embedding=jnp.asarray(reference["vlm_teacher"]), head=head)
  return jnp.asarray(reference["vlm_student"]), teacher, {"label": reference["vlm_labels"]}


CASES = {
  "cls": only("cls"),
  "mse": only("mse"),
  "contrast": only("contrast"),
  "align": only("align", filtered=False),
  "align_top3": only("align", filtered=False, top=3),
  "align_filtered": only("align"),
  "all": vlm_ood(),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_official_ones(reference, name):
  embedding, teacher, batch = sides(reference)

  def loss(embedding):
    return total(applied(CASES[name], Outputs(embedding=embedding), teacher, batch)[0])

  value, grad = jax.value_and_grad(loss)(embedding)
  np.testing.assert_allclose(value, reference[f"vlm_{name}"], rtol=1e-5)
  np.testing.assert_allclose(grad, reference[f"vlm_{name}_grad"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["all", "clip"])
def test_eight_devices_change_nothing(reference, name):
  embedding, teacher, batch = sides(reference)
  objective = CASES["all"] if name == "all" else image_text_contrastive()
  student = Outputs(embedding=embedding, hidden=10 * unit(embedding), head=teacher.head)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  told = {"embedding": teacher.embedding}

  @jax.jit
  def gradient(embedding, told, label):
    def loss(embedding):
      own = dataclasses.replace(student, embedding=embedding, hidden=10 * unit(embedding))
      other = Outputs(**told, head=teacher.head)
      empty = objective.init(jax.random.key(0), own, other, {"label": label})
      out = objective.apply(empty, own, other, {"label": label}, step=0, rng=jax.random.key(0))
      return total(out)

    return jax.value_and_grad(loss)(embedding)

  given = embedding, told, jnp.asarray(batch["label"])
  alone, spread = gradient(*given), gradient(*jax.device_put(given, rows))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), alone, spread)


def test_the_filter_lets_some_through_and_not_all(reference):
  embedding, teacher, batch = sides(reference)
  result, _ = applied(only("align"), Outputs(embedding=embedding), teacher, batch)
  assert 0 < counts(result)["align"] < 8


def test_contrast_one_way_and_captions_are_the_official_ones(reference):
  embedding, teacher, batch = sides(reference)
  scores = unit(embedding) @ unit(teacher.embedding).T / 0.07
  one_way = losses.paired_cross_entropy(scores, both=False).mean()
  np.testing.assert_allclose(one_way, reference["vlm_contrast_single"], rtol=1e-5)
  labels = batch["label"]
  captions = losses.paired_cross_entropy(
    unit(embedding) @ unit(jnp.asarray(reference["vlm_captions"])).T,
    distractors=labels[:, None] != labels[None],
    both=False,
  ).mean()
  wanted = reference["vlm_cls_captions"] - reference["vlm_cls"]
  np.testing.assert_allclose(captions, wanted, rtol=1e-5)


def test_retrieval_is_the_official_one(reference):
  embedding, teacher, batch = sides(reference)
  support = reference["vlm_support"]
  # There cosines are not divided by the temperature when examples are retrieved.
  logits = retrieved(
    unit(embedding) @ teacher.head.weight.T,
    unit(embedding),
    jnp.asarray(support.reshape(-1, 10)),
    jnp.repeat(jnp.arange(6), 2),
  )
  value = losses.cross_entropy(logits, jnp.asarray(batch["label"])).mean()
  np.testing.assert_allclose(value, reference["vlm_retrieved_loss"], rtol=1e-5)


def test_worked_values():
  f = jnp.array([[3.0, 0.0], [0.0, 2.0]])
  np.testing.assert_allclose(squared_distance(f, f[::-1]), [2.0, 2.0])  # 2 - 2 cos, cos 0
  np.testing.assert_allclose(squared_distance(f, 5 * f), 0, atol=1e-6)
  every = jnp.ones(2, bool)
  logits, told = jnp.array([[0.0, 9.0, 1.0]] * 2), jnp.array([[2.0, -9.0, 1.0]] * 2)
  kl = top_classes_kl(logits, told, top=2, where=every)
  p, q = (np.exp(x) / np.exp(x).sum() for x in (np.array([2.0, 1.0]), np.array([0.0, 1.0])))
  np.testing.assert_allclose(kl, (p * np.log(p / q)).sum(), rtol=1e-6)
  other = logits.at[:, 1].set(-50.0)  # outside the two
  np.testing.assert_array_equal(kl, top_classes_kl(other, told, top=2, where=every))


def test_no_image_that_passes_costs_nothing(reference):
  embedding, teacher, batch = sides(reference)
  wrong = (teacher.embedding @ teacher.head.kernel).argmax(-1)
  batch = {"label": (wrong + 1) % 6}

  def loss(embedding):
    return total(applied(only("align"), Outputs(embedding=embedding), teacher, batch)[0])

  value, grad = jax.value_and_grad(loss)(embedding)
  assert value == 0 and (grad == 0).all()


def test_novel_classes_change_neither_labels_term_nor_alignment(reference):
  embedding, teacher, batch = sides(reference)
  kept = np.isin(batch["label"], [0, 2, 3])
  assert 0 < kept.sum() < 8
  objective = only("cls", "align", novel=(1, 4, 5))
  result, _ = applied(objective, Outputs(embedding=embedding), teacher, batch)
  np.testing.assert_array_equal(result.loss["cls"].where, kept)
  moved = teacher.head.weight.at[jnp.array([1, 4, 5])].set(7.0)
  other = Outputs(embedding=teacher.embedding, head=Head(moved, tied=True))
  again, _ = applied(objective, Outputs(embedding=embedding), other, batch)
  np.testing.assert_array_equal(total(result), total(again))


def test_labels_of_base_classes_alone():
  student, batch = outputs(0), labelled()
  result, _ = applied(base_cross_entropy(novel=(0, 3)), student, None, batch)
  logits, labels = np.asarray(student.logits), np.asarray(batch["label"])
  for i in range(7):
    counted = labels[i] not in (0, 3)
    assert bool(result.loss[""].where[i]) == counted
    base = logits[i, [1, 2, 4]]
    wanted = np.log(np.exp(base).sum()) - logits[i, labels[i]] if counted else 0
    np.testing.assert_allclose(result.loss[""].values[i], wanted, rtol=1e-5)
  with pytest.raises(KdjaxError, match=r"novel = \[7\] must be some of the classes 0 .. 4"):
    applied(base_cross_entropy(novel=(7,)), student, None, batch)


def test_clip_is_not_told_apart_from_texts_of_its_own_class():
  head = Head(jnp.eye(3), tied=True)
  hidden = jnp.array([[2.0, 0, 0], [1.0, 0, 0], [0, 3.0, 0], [5.0, 5, 5]])
  batch = {"label": jnp.array([0, 0, 1, -1])}
  result, _ = applied(image_text_contrastive(), Outputs(hidden=hidden, head=head), None, batch)
  np.testing.assert_array_equal(result.loss[""].where, [True, True, True, False])

  def lse(*x):
    return np.log(np.exp(x).sum())

  # Rows: its own text and that of the other class. Columns: likewise.
  wanted = [
    (lse(2, 0) - 2 + lse(2, 0) - 2) / 2,
    (lse(1, 0) - 1 + lse(1, 0) - 1) / 2,
    (lse(3, 0, 0) - 3 + lse(3, 0, 0) - 3) / 2,
    0,
  ]
  np.testing.assert_allclose(result.loss[""].values, wanted, rtol=1e-5)


def test_paired_cross_entropy_ignores_what_does_not_count():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.standard_normal((5, 5)), jnp.float32)
  where = jnp.array([True, True, False, True, False])
  kept = np.flatnonzero(where)
  spoiled = scores.at[2].set(jnp.nan).at[:, 4].set(jnp.inf)
  value, grad = jax.value_and_grad(lambda x: losses.paired_cross_entropy(x, where=where).sum())(
    spoiled
  )
  wanted = losses.paired_cross_entropy(scores[kept][:, kept])
  np.testing.assert_allclose(value, wanted.sum(), rtol=1e-6)
  assert np.isfinite(grad).all() and (grad[2] == 0).all() and (grad[:, 4] == 0).all()
  np.testing.assert_allclose(losses.paired_cross_entropy(jnp.ones((7, 7))), np.log(7), rtol=1e-6)
  with pytest.raises(KdjaxError, match=r"scores has shape \(2, 3\)"):
    losses.paired_cross_entropy(jnp.zeros((2, 3)))


def test_options_and_widths_are_checked(reference):
  with pytest.raises(KdjaxError, match="temperature = 0 must be positive"):
    vlm_ood(temperature=0)
  with pytest.raises(KdjaxError, match="top = 0 must be at least 1"):
    vlm_ood(top=0)
  with pytest.raises(KdjaxError, match="all weights are 0"):
    only()
  embedding, teacher, batch = sides(reference)
  with pytest.raises(KdjaxError, match="make the student end in the teacher's width"):
    applied(vlm_ood(), Outputs(embedding=embedding[:, :4]), teacher, batch)
