"""Objectives on logits: any loss by name, its arguments, and the labels beside it."""

import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import cross_entropy, hinton_kd, logit_kd
from kdjax.objectives.base import counts, total
from kdjax.outputs import Head, Outputs
from tests.objectives.helpers import applied, labelled, outputs


def test_a_loss_is_found_by_name_and_gets_its_arguments():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  objective = logit_kd(loss="generalized_jsd", beta=0.2, temperature=2.0, kd_weight=3.0)
  result, _ = applied(objective, student, teacher, batch)
  wanted = losses.generalized_jsd(student.logits, teacher.logits, beta=0.2, temperature=2.0)
  np.testing.assert_allclose(result.loss["kd"].values[:-1], wanted[:-1], rtol=1e-6)
  assert set(result.loss) == {"kd"}  # labels weigh nothing by default
  np.testing.assert_allclose(total(result), 3 * wanted[:-1].mean(), rtol=1e-6)


def test_a_loss_that_reads_labels_gets_them_and_skips_rows_without():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  batch["label"] = batch["label"].at[2].set(-1)
  result, _ = applied(logit_kd(loss="decoupled_kd", ce_weight=0.5), student, teacher, batch)
  wanted = losses.decoupled_kd(student.logits, teacher.logits, batch["label"].at[2].set(0))
  np.testing.assert_allclose(result.loss["kd"].values[:2], wanted[:2], rtol=1e-6)
  assert counts(result) == {"kd": 6, "ce": 6}
  assert result.loss["kd"].values[2] == 0


def test_labels_alone_need_no_teacher():
  result, _ = applied(cross_entropy(), outputs(0), Outputs(), labelled())
  wanted = losses.cross_entropy(outputs(0).logits, labelled()["label"])[:-1].mean()
  np.testing.assert_allclose(total(result), wanted, rtol=1e-6)
  assert cross_entropy().taps.teacher == frozenset()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_sparse_signal_takes_a_sparse_loss(chunk_size):
  batch, student = labelled(), outputs(0)
  signal = losses.top_k_signal(outputs(1).logits, k=2, temperature=2.0)
  arguments = {"tail": "bucket", "temperature": 2.0}
  if chunk_size is not None:  # an identity for a head
    student = Outputs(hidden=student.logits, head=Head(np.eye(student.logits.shape[-1], dtype="f")))
  objective = logit_kd(loss="sparse_forward_kl", chunk_size=chunk_size, **arguments)
  result, _ = applied(objective, student, Outputs(signal=signal), batch)
  wanted = losses.sparse_forward_kl(outputs(0).logits, signal, **arguments)[:-1].mean()
  np.testing.assert_allclose(total(result), wanted, rtol=1e-5)


def test_a_loss_on_logits_refuses_a_sparse_signal():
  signal = losses.top_k_signal(outputs(1).logits, k=2)
  for objective in (logit_kd(loss="forward_kl"), hinton_kd()):
    with pytest.raises(
      KdjaxError, match=r"a sparse signal \(the K likeliest.*sparse_forward_kl or"
    ):
      applied(objective, outputs(0), Outputs(signal=signal), labelled())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"loss": "forward_lk"}, "did you mean 'forward_kl'"),
    ({"loss": "forward_kl", "beta": 0.5}, "beta is not an argument of 'forward_kl'"),
    ({"loss": "norm_direction"}, "is no loss on student and teacher logits"),
  ],
)
def test_unknown_names_and_arguments_are_refused(arguments, message):
  with pytest.raises(KdjaxError, match=message):
    logit_kd(**arguments)
