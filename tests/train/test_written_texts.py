"""Texts written once: the writer's own draws, kept on the disk, never another's by mistake."""

import jax
import numpy as np
import pytest

from kdjax import models, teachers
from kdjax.errors import KdjaxError
from kdjax.generation import generate
from kdjax.programs.rollouts import beginnings, written_rows
from kdjax.train.streams import load_data
from kdjax.train.written_texts import chosen_prompts, write_texts
from tests.end_to_end.text import config_of, text_folder

PROMPT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def data(folder):
  config = config_of(folder, data__pack="none", data__sequence_length=16)
  return load_data(config["data"]).whole


def writer(data, seed=0):
  model = models.decoder(num_classes=data.num_classes, width=8, depth=1, heads=2)
  variables = jax.tree.map(lambda x: 3 * x, jax.jit(model.init)(jax.random.key(seed)))
  return model, teachers.frozen(model, variables)


def written(data, path, teacher, rows, **options):
  own = {"prompt_length": PROMPT, "generations": 2, "seed": 4, "batch_size": 8} | options
  mesh = {"data": 1, "fsdp": 1, "tensor": 1}
  return write_texts(teacher, rows, data, path, mesh=mesh, **own)


def test_rows_are_what_generate_writes_and_are_kept(data, tmp_path):
  """Ten prompts in batches of eight; text g of row r has the random numbers of g * 10 + r."""
  model, teacher = writer(data)
  (rows,) = chosen_prompts(data.train, [10], seed=0)
  texts = written(data, tmp_path / "a" / "texts.npz", teacher, rows)
  assert len(texts) == 20
  batch = rows.read(np.arange(10))
  prompts = beginnings(batch, PROMPT)
  for generation in (0, 1):
    alone = jax.jit(lambda v, numbers: generate(
      model, v, prompts.tokens, prompts.lengths, rng=jax.random.key(4),
      max_new_tokens=16 - PROMPT, eos_ids=(data.tokenizer.eos_token_id,), rows=numbers,
    ))(teacher.frozen, 10 * generation + np.arange(10, dtype=np.int32))  # fmt: skip
    wanted = written_rows(prompts, alone, 16)
    own = texts.read(10 * generation + np.arange(10))
    for name in ("tokens", "label", "mask", "segment_ids", "positions"):
      np.testing.assert_array_equal(own[name], wanted[name], err_msg=name)
    np.testing.assert_array_equal(own["index"], 10 * generation + np.arange(10))
  assert (texts.read(np.arange(10))["tokens"] != texts.read(np.arange(10, 20))["tokens"]).any()
  # A second call reads: the time of change stays.
  changed = (tmp_path / "a" / "texts.npz").stat().st_mtime_ns
  again = written(data, tmp_path / "a" / "texts.npz", teacher, rows)
  assert (tmp_path / "a" / "texts.npz").stat().st_mtime_ns == changed
  np.testing.assert_array_equal(again.arrays["tokens"], texts.arrays["tokens"])
  for other, told in (
    ({"teacher": writer(data, 1)[1]}, "another writer"),
    ({"rows": chosen_prompts(data.train, [10], seed=1)[0]}, "another prompts"),
    ({"seed": 5}, "another options"),
  ):
    arguments = {"teacher": teacher, "rows": rows} | other
    with pytest.raises(KdjaxError, match=told):
      written(data, tmp_path / "a" / "texts.npz", **arguments)


def test_prompts_are_disjoint_and_the_same_again(data):
  one, two = chosen_prompts(data.train, [20, 30], seed=3)
  assert (len(one), len(two)) == (20, 30)
  places = [list(zip(r.plan.domain, r.plan.examples.start, strict=True)) for r in (one, two)]
  assert not set(places[0]) & set(places[1])
  again = chosen_prompts(data.train, [20, 30], seed=3)[0]
  np.testing.assert_array_equal(again.plan.examples.start, one.plan.examples.start)
  with pytest.raises(KdjaxError, match="prompts are more than the"):
    chosen_prompts(data.train, [10**6], seed=0)


def test_a_writer_must_write(data, tmp_path):
  _, teacher = writer(data)
  (rows,) = chosen_prompts(data.train, [4], seed=0)
  with pytest.raises(KdjaxError, match="no causal language model"):
    written(data, tmp_path / "no.npz", teacher._replace(decode=None), rows)
