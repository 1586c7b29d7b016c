"""Jobs on text: a teacher and a student of it, the report, export, resumption, bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from kdjax import objectives
from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY
from kdjax.models.convert import open_checkpoint
from kdjax.models.pretrained import pretrained
from kdjax.outputs import Head, Outputs
from kdjax.train.config import check_config
from kdjax.train.evaluate import evaluate_checkpoint
from kdjax.train.export import export_checkpoint
from kdjax.train.generate import write
from kdjax.train.job import dry_run, run_job, teacher_config, trace
from kdjax.train.loop import Interrupted
from kdjax.train.pretrained import build_teacher
from kdjax.train.streams import load_data
from tests.data.text.helpers import bytes_tokenizer, words_tokenizer
from tests.end_to_end.helpers import steps
from tests.end_to_end.text import config_of, text_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def finished(folder):
  config = config_of(folder)
  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    return config, folder / "run", run_job(config, folder / "run")


@pytest.fixture(scope="module")
def exported(finished):
  """The student of the run, as a folder of Hugging Face's format."""
  config, workdir, _ = finished
  return export_checkpoint(config, workdir, workdir.parent / "exported")


def test_the_report_has_perplexity_by_domain_and_what_was_written(finished):
  _, workdir, report = finished
  student, teacher = report["results"]["student_distilled"], report["results"]["teacher"]
  assert teacher["perplexity"] < student["perplexity"] < 30 < 259
  assert student["perplexity"] == pytest.approx(np.exp(student["nll"]), rel=1e-6)
  assert min(student["perplexity/counts"], student["perplexity/letters"]) < student["perplexity"]
  assert 0 < student["forward_kl"] < 3 and 0 <= student["agreement"] <= 1
  written = json.loads((workdir / "report.json").read_text())
  assert set(written["samples"]["abc"]) == {"teacher", "student_distilled"}
  assert written["samples"]["abc"]["teacher"].startswith("defg")
  page = (workdir / "report.html").read_text()
  assert "Samples" in page and "defg" in page
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
  trained = [row for row in rows if row["split"] == "train"]
  assert all(
    row["tokens_per_second"] == pytest.approx(48 * row["examples_per_second"]) for row in trained
  )


def test_the_exported_student_is_the_student(finished, exported):
  config, workdir, report = finished
  out = exported
  model = pretrained(path=str(out))
  assert open_checkpoint(out).config["architectures"] == ["LlamaForCausalLM"]
  again = config | {"student": {"name": "pretrained", "path": str(out)}, "total_steps": 1}
  again["data"] = config["data"] | {"tokenizer": str(out)}  # its tokenizer went with it
  again["optimizer"] = config["optimizer"] | {"learning_rate": 1e-12, "weight_decay": 0.0}
  again["teacher"], again["objective"] = {}, config["teacher"]["train"]["objective"]
  given = run_job(again, workdir.parent / "again")["results"]
  wanted = report["results"]["student_distilled"]
  for row in ("student_distilled_start", "student_distilled"):
    assert given[row]["nll"] == pytest.approx(wanted["nll"], abs=1e-5)
  assert model.num_classes == 259


def test_a_student_pruned_by_its_own_text_trains_and_is_exported(finished, exported):
  config, workdir, _ = finished
  small = {"name": "pretrained", "path": str(exported), "width": 8, "heads": 1, "mlp_width": 24}
  own = config | {"student": small | {"calibration_rows": 9}, "total_steps": 2, "teacher": {}}
  own["objective"] = config["teacher"]["train"]["objective"]
  results = run_job(own, workdir.parent / "pruned")["results"]
  assert results["student_distilled_start"]["nll"] < np.log(259)  # it knows more than nothing
  out = export_checkpoint(own, workdir.parent / "pruned", workdir.parent / "pruned_out")
  written = open_checkpoint(out).config
  assert (written["hidden_size"], written["head_dim"], written["intermediate_size"]) == (8, 8, 24)
  assert written["num_attention_heads"] == written["num_key_value_heads"] == 1


def test_a_checkpoint_is_evaluated_to_the_reports_figures(finished):
  config, workdir, report = finished
  metrics = evaluate_checkpoint(config, workdir)
  for name in ("nll", "accuracy", "perplexity", "perplexity/letters"):
    assert metrics[name] == pytest.approx(report["results"]["student_distilled"][name], abs=1e-4)


def test_a_runs_student_writes_what_the_report_shows(finished):
  config, workdir, _ = finished
  out = write(str(workdir), ["abc"], config=config, max_new_tokens=8, sampling=GREEDY)
  shown = json.loads((workdir / "report.json").read_text())["samples"]["abc"]
  assert out.texts == [shown["student_distilled"]] and len(out.texts[0]) == 8
  pictures = config | {"data": base.get_config().to_dict()["data"]}
  with pytest.raises(KdjaxError, match="has no tokenizer"):
    write(str(workdir), ["abc"], config=pictures, max_new_tokens=8, sampling=GREEDY)


def test_an_interrupted_run_ends_at_the_same_weights(finished, folder):
  config, _, report = finished
  config = config | {"teacher": config["teacher"] | {"checkpoint": str(folder / "run" / "teacher")}}
  asked = iter([False] * 9 + [True] * 9)
  with pytest.raises(Interrupted):
    run_job(config, folder / "cut", stop=lambda: next(asked))
  assert 0 < steps(folder / "cut")[-1] < 24
  assert run_job(config, folder / "cut")["params_sha256"] == report["params_sha256"]


def test_the_teacher_of_a_run_with_another_tokenizer_is_refused(finished, folder):
  config, workdir, _ = finished
  bytes_tokenizer(reverse=True).save_pretrained(folder / "reversed")
  own = config | {
    "data": config["data"] | {"tokenizer": str(folder / "reversed")},
    "teacher": config["teacher"] | {"checkpoint": str(workdir / "teacher")},
  }
  with pytest.raises(KdjaxError, match=r"^config\.teacher\.checkpoint .*/teacher\) has another"):
    run_job(own, folder / "refused")
  assert not any((folder / "refused").glob("*"))


def test_an_adapter_trains_and_is_merged_when_exported(finished, exported, folder):
  config, workdir, _ = finished
  own = config | {
    "student": {"name": "pretrained", "path": str(exported), "adapter": {"rank": 2}},
    "teacher": config["teacher"] | {"checkpoint": str(workdir / "teacher"), "dtype": "int8"},
  }
  results = run_job(own, folder / "adapted")["results"]
  assert results["student_distilled"]["nll"] < results["student_distilled_start"]["nll"]
  merged = pretrained(path=str(export_checkpoint(own, folder / "adapted", folder / "merged")))
  before, after = pretrained(path=str(exported)).start().params, merged.start().params
  moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after)
  assert moved["stack"]["blocks"]["mlp"]["up"]["kernel"] and not moved["embed"]["tokens"]


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    (
      {"data__sequence_length": 4096},
      "4096 tokens is longer than.*max_positions = 2048",
    ),
    (
      {"student__num_classes": 100},
      "student.num_classes = 100.*tokens of config.data.tokenizer",
    ),
    ({"data__label_fraction": 0.5}, "text is its own label"),
    ({"data__validation_fraction": 1.5}, r"config.data.*validation_fraction = 1.5 must lie in"),
    ({"data__tokenizer": "/nowhere"}, "/nowhere does not exist"),
    ({"student": {"name": "pretrained", "path": "/nowhere"}}, "config.student.*does not exist"),
    ({"student": {"name": "vit"}}, "image"),
    ({"eval__best_metric": "perplexit"}, "'perplexit' is not evaluated.*'perplexity'"),
    ({"samples__max_new_tokens": 0}, "config.samples.max_new_tokens = 0 must be at least 1"),
  ],
)
def test_mistakes_are_told_before_compute(folder, changes, told):
  with pytest.raises(KdjaxError, match=told):
    config = config_of(folder, **changes)
    check_config(config)
    dry_run(config)


def test_a_program_of_two_streams_validates_on_documents_of_their_own(folder):
  bilevel = {"name": "bilevel", "virtual_learning_rate": 0.1}
  objective = {"name": "hinton_kd", "temperature": 1.0, "kd_weight": 0.5, "ce_weight": 0.5}
  config = config_of(folder, program=bilevel, objective=objective)
  with pytest.raises(KdjaxError, match=r"validation split: set config\.data\.validation_fraction"):
    dry_run(config)
  config["data"]["validation_fraction"] = 0.2
  dry_run(config)  # traces the steps of both streams


@pytest.fixture
def words(folder):
  """The tokenizer of a teacher that reads words, for students of bytes."""
  names = [*["one", "two", "three", "abcdefg"], *map(str, range(60))]
  words_tokenizer(tuple(names)).save_pretrained(folder / "words")
  return {"teacher_tokenizer": str(folder / "words"), "teacher_sequence_length": 24}


def test_a_teacher_of_another_tokenizer_is_trained_and_asked_in_its_own_tokens(folder, words):
  for objective in ({"name": "uld", "chunk_size": 16}, {"name": "gold", "chunk_size": 16}):
    config = config_of(folder, objective=objective)
    config["data"] |= words
    dry_run(config)  # traces the teacher's run, the student's and both evaluations
  taught = teacher_config(config)["data"]
  assert (taught["tokenizer"], taught["sequence_length"]) == (words["teacher_tokenizer"], 24)
  assert "teacher_tokenizer" not in taught
  metrics = trace(config, build_teacher(config, load_data(config["data"]).whole, abstract=True))
  assert {"nll", "teacher/nll", "teacher/perplexity/counts"} <= set(metrics)
  assert "forward_kl" not in metrics


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({}, r"config.data.teacher_tokenizer has another tokenizer.*67 tokens in the one and 259 in"),
    ({"teacher__kind": "ema"}, "teacher.kind = 'ema' reads the student's tokens"),
    ({"objective": {"name": "gold"}, "teacher__kind": "cached"}, "config.teacher.cache"),
    ({"objective": {"name": "gold"}, "data__pack": "concat"}, "'concat' does not go with"),
  ],
)
def test_mistakes_with_two_tokenizers_are_told(folder, words, changes, told):
  objective = {"name": "uld"} if "teacher__kind" in changes else None
  config = config_of(folder, **({"objective": objective} if objective else {}) | changes)
  config["data"] |= words
  with pytest.raises(KdjaxError, match=told):
    dry_run(config)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_batch_that_counts_nothing_gives_zero_and_no_nan(chunk_size):
  head = Head(jnp.ones((4, 9)))
  batch = {"label": jnp.full((2, 8), -1), "mask": jnp.zeros((2, 8), bool)}
  objective = objectives.hinton_kd(chunk_size=chunk_size)

  def outputs(hidden):
    return Outputs(hidden=hidden, head=head, logits=head.logits(hidden))

  def loss(hidden):
    sides = outputs(hidden), outputs(jnp.ones((2, 8, 4)))
    variables = objective.init(None, *sides, batch)
    return objectives.total(objective.apply(variables, *sides, batch, step=0, rng=None))

  value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.full((2, 8, 4), jnp.nan))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
