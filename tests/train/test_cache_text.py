"""A language model is cached once; students read its signals in any packing and mixture."""

import json
import shutil

import jax
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.train.cache import cache_teacher, signals_of
from kdjax.train.cache_check import verify_cache
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.job import prepare_teacher, run_job
from kdjax.train.mesh import make_mesh
from kdjax.train.pretrained import build_teacher
from kdjax.train.stage import train
from kdjax.train.streams import load_data, open_data
from tests.data.text.helpers import bytes_tokenizer
from tests.end_to_end.helpers import tiny

LENGTH = 32
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "into", "house", "garden"]
CE = {"name": "cross_entropy", "chunk_size": 16}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
  """A config of text with a trained teacher: two domains of documents of all lengths."""
  folder = tmp_path_factory.mktemp("taught")
  patch = pytest.MonkeyPatch()
  patch.setenv("KDJAX_CACHE", str(folder / "tokens"))
  rng = np.random.default_rng(0)
  for name in ("a", "b"):
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 30))) for _ in range(30)]
    lines = [json.dumps({"text": f"{name} {text}"}) for text in texts]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
  bytes_tokenizer().save_pretrained(folder / "tokenizer")
  config = tiny({"batch_size": 8, "eval.batch_size": 8, "eval.best_metric": "nll"})
  config["data"] |= {
    "name": "text",
    "tokenizer": str(folder / "tokenizer"),
    "sequence_length": LENGTH,
    "sources": {n: {"kind": "jsonl", "path": str(folder / f"{n}.jsonl")} for n in ("a", "b")},
    "test_fraction": 0.2,
  }
  small = {"name": "decoder", "width": 16, "depth": 1, "heads": 2}
  config["student"] = small
  config["teacher"] |= {"model": small | {"width": 32}, "train": {"objective": CE}}
  config["objective"] = CE
  with jax.numpy_dtype_promotion("standard"):
    prepare_teacher(config, folder, stop=lambda: False)
  config["teacher"]["checkpoint"] = str(folder / "teacher")
  yield config
  patch.undo()


def from_cache(config, folder, objective=None, **data):
  own = {"kind": "cached", "cache": str(folder), "checkpoint": ""}
  config = config | {"teacher": config["teacher"] | own, "data": config["data"] | data}
  return config | {"objective": objective or config["objective"]}


def stream(config):
  mesh = make_mesh(data=1)
  return open_data(config, load_data(config["data"]), mesh, ("train",)).stream


@pytest.fixture(scope="module")
def stored(taught, tmp_path_factory):
  """The caches of all kinds, and the session of each."""
  sessions = {}
  for kind in ("sampled", "top_k", "hidden"):
    folder = tmp_path_factory.mktemp(kind)
    sessions[kind] = open_session(taught, CacheOptions(kind=kind, num_samples=12, k=8)), folder
    cache_teacher(*sessions[kind])
  return sessions


@pytest.mark.parametrize("kind", ["sampled", "top_k", "hidden"])
def test_what_is_stored_is_what_the_teacher_says(stored, kind):
  session, folder = stored[kind]
  found = verify_cache(session, folder)
  assert found["positions"] > 20 * LENGTH
  if kind == "sampled":
    assert found["equal_draws"] == 1
    assert abs(found["entropy_error"]) < 4 * found["standard_error"]
  else:
    assert found["max_error"] < 0.05 and found["forward_kl"] < {"top_k": 2, "hidden": 1e-3}[kind]


@pytest.mark.parametrize("pack", ["pack", "none"])
def test_rows_bring_the_signals_of_their_examples_in_any_packing(taught, stored, pack):
  session, folder = stored["top_k"]
  batches = stream(from_cache(taught, folder, pack=pack))
  online = jax.jit(signals_of(session))
  for _ in range(3):
    batch = next(batches)
    inputs = {name: values for name, values in batch.items() if "signal" not in name}
    made = jax.device_get(online(session.frozen, inputs, np.zeros((8, LENGTH, 2), np.uint32)))
    used = batch["segment_ids"] > 0
    assert used.any() and (pack == "pack" or (~used).any())
    for name in ("ids", "log_probs"):
      order = np.argsort(made["ids"], axis=-1)
      made[f"sorted {name}"] = np.take_along_axis(made[name], order, axis=-1)
    ids, values = batch["signal/ids"], batch["signal/values"]
    # Classes that are equally likely to rounding may change places at the end of the list.
    same = (ids == made["sorted ids"]).all(-1)
    assert same[used].mean() > 0.99
    both = used & same
    np.testing.assert_allclose(values[both], made["sorted log_probs"][both], atol=0.05)
    assert (values[~used] == -np.inf).all()


def test_domains_are_mixed_with_their_signals(taught, stored):
  _, folder = stored["sampled"]
  batch = next(stream(from_cache(taught, folder, weights={"a": 3.0, "b": 1.0})))
  assert np.bincount(batch["domain"]).tolist() == [6, 2]
  weights = batch["signal/values"].sum(-1)
  np.testing.assert_allclose(weights, batch["segment_ids"] > 0, rtol=1e-6)


def test_another_tokenizer_or_length_is_refused(taught, stored, tmp_path):
  _, folder = stored["sampled"]
  with pytest.raises(KdjaxError, match=r"data\.sequence_length: saved 32, now 16"):
    stream(from_cache(taught, folder, sequence_length=16))
  tokenizer = bytes_tokenizer()
  tokenizer.add_special_tokens({"unk_token": "<unknown>"})
  tokenizer.save_pretrained(tmp_path)
  with pytest.raises(KdjaxError, match=r"config\.teacher\.cache: .*tokenizer: saved '\w{64}', now"):
    stream(from_cache(taught, folder, tokenizer=str(tmp_path)))
  # Documents that were for testing when the teacher was asked.
  with pytest.raises(KdjaxError, match=r"is not in the cache .*other data"):
    stream(from_cache(taught, folder, split_seed=1))


def test_a_damaged_cache_costs_nothing(taught, stored, tmp_path):
  cache = shutil.copytree(stored["sampled"][1], tmp_path / "cache")
  shard = sorted(cache.glob("*.array_record"))[-1]
  shard.write_bytes(shard.read_bytes()[:100])
  before = {path.name: path.read_bytes() for path in cache.iterdir()}
  with pytest.raises(KdjaxError, match=rf"config\.teacher\.cache: .*{shard.name} has 100 bytes"):
    run_job(from_cache(taught, cache), tmp_path / "run")
  assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
  assert not any((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
  ("kind", "objective"),
  [
    ("sampled", {"loss": "sparse_cross_entropy"}),
    ("top_k", {"loss": "sparse_forward_kl", "tail": "bucket"}),
    ("hidden", {"loss": "forward_kl"}),
  ],
)
def test_a_student_trains_from_each_kind(taught, stored, kind, objective, tmp_path):
  _, folder = stored[kind]
  config = from_cache(taught, folder, {"name": "logit_kd", "chunk_size": 16} | objective)
  teacher = build_teacher(config, load_data(config["data"]).whole)
  told = train(config, tmp_path, teacher, name="student")[0].evaluation
  assert np.isfinite(told["nll"])
  assert not any("teacher" in name for name in told)  # it knows nothing of the test documents


def test_the_live_teacher_is_evaluated_beside(taught, stored, tmp_path):
  _, folder = stored["sampled"]
  objective = {"name": "logit_kd", "chunk_size": 16, "loss": "sparse_cross_entropy"}
  config = from_cache(taught, folder, objective)
  config["teacher"]["checkpoint"] = taught["teacher"]["checkpoint"]
  teacher = build_teacher(config, load_data(config["data"]).whole)
  told = train(config, tmp_path, teacher, name="student")[0].evaluation
  assert told["teacher/nll"] > 0 and told["forward_kl"] > 0
