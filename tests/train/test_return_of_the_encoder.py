"""Return of the Encoder as a job: it trains its teacher on joined rows, and resumes to the bit."""

import json

import jax
import pytest

from configs import return_of_the_encoder
from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY
from kdjax.train.config import check_config
from kdjax.train.generate import write
from kdjax.train.job import dry_run, run_job, teacher_config, variant_of
from kdjax.train.loop import Interrupted
from tests.data.text.helpers import bytes_tokenizer

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("pairs")
  bytes_tokenizer().save_pretrained(place / "tokenizer")
  rows = [{"source": "abc"[: 1 + i % 3] * (1 + i % 4), "target": "xyz"[i % 3]} for i in range(40)]
  (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return place


def tiny(folder):
  config = return_of_the_encoder.get_config().to_dict()
  config |= {"total_steps": STEPS, "batch_size": 8}
  config["mesh"] |= {"data": 1}
  config["data"] |= {"tokenizer": str(folder / "tokenizer"), "path": str(folder / "pairs.jsonl")}
  config["data"] |= {"source_length": 8, "target_length": 4, "test_fraction": 0.2}
  config["student"] |= {"width": 8, "encoder_depth": 1}
  config["teacher"]["model"] = {"name": "decoder", "width": 8, "depth": 1, "heads": 2}
  config["teacher"]["train"]["total_steps"] = 3
  config["eval"] |= {"batch_size": 8, "every": STEPS, "log_every": 1}
  config["checkpoint"]["every"] = STEPS
  config["optimizer"]["warmup_steps"] = 0
  return config


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_every_variant_is_a_config(variant):
  config = return_of_the_encoder.get_config(variant).to_dict()
  for which in ("method", "baseline"):
    check_config(variant_of(config, which))
  if variant == "small":
    assert teacher_config(config)["data"]["joined"] and "joined" not in config["data"]


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(folder):
  config = tiny(folder)
  whole = run_job(config, folder / "whole")
  config["teacher"]["checkpoint"] = str(folder / "whole" / "teacher")
  asked = iter([False] * 3 + [True])
  with pytest.raises(Interrupted):
    run_job(config, folder / "stopped", stop=lambda: next(asked))
  again = run_job(config, folder / "stopped")
  assert again["params_sha256"] == whole["params_sha256"]
  rows = [json.loads(line) for line in (folder / "stopped" / "metrics.jsonl").open()]
  assert all(row["tokens_written"] > 0 for row in rows if row["split"] == "train")
  # It writes targets of sources as rows hold them.
  out = write(
    str(folder / "whole"), ["ab", "c" * 20], config=config, max_new_tokens=4, sampling=GREEDY
  )
  assert len(out.texts) == 2 and not out.continues and 2 <= out.tokens <= 8
  # The teacher is asked about the same targets.
  assert 0 < whole["results"]["teacher"]["nll"] < 10


def test_a_start_that_is_not_the_models_and_rows_of_no_pairs_are_told(folder):
  config = tiny(folder)
  with pytest.raises(KdjaxError, match=r"set config\.data\.start = 5"):
    dry_run(config | {"student": config["student"] | {"start": 5}})
  with jax.numpy_dtype_promotion("standard"), pytest.raises(KdjaxError, match="text_pairs"):
    data = {"name": "text", "tokenizer": config["data"]["tokenizer"], "sequence_length": 8}
    text = {"counts": {"kind": "jsonl", "path": config["data"]["path"], "field": "source"}}
    shared = {k: config["data"][k] for k in ("seed", "label_fraction", "labelled_only")}
    shared |= {k: config["data"][k] for k in ("validation_fraction", "augment", "threads")}
    dry_run(config | {"data": data | shared | {"sources": text, "test_fraction": 0.2}})
