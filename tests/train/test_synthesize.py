"""Synthetic data as a job: files that are learnt from, targets alone, the same as gold labels."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import llama405b_synthetic
from kdjax.data import text_pairs
from kdjax.data.text.chat import rendered
from kdjax.data.text.documents import chat
from kdjax.errors import KdjaxError
from kdjax.models.convert import config_of as config_of_spec
from kdjax.models.convert import tensors_of, write_checkpoint
from kdjax.models.pretrained import decoder
from kdjax.synthesis import TEMPLATES
from kdjax.teachers.text import Prompt, TextDecoding, TextTeacher
from kdjax.train.compare import run_compare
from kdjax.train.config import check_config
from kdjax.train.job import variant_of
from kdjax.train.loop import Interrupted
from kdjax.train.synthesize import arithmetic_inputs, open_teacher, read_items, synthesize
from tests.data.text.helpers import bytes_tokenizer
from tests.end_to_end.helpers import launch

SOLVER = "solver:two_step_arithmetic"
STEPS = TEMPLATES["chain_of_thought"]
TOKENIZER = bytes_tokenizer()
INPUTS = arithmetic_inputs(200, 20)


def written(out, **options):
  options = {"inputs": INPUTS, "templates": [STEPS], "decodings": [TextDecoding()]} | options
  return synthesize(options.pop("teacher", None) or open_teacher(SOLVER), out=out, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("arithmetic")
  written(out)
  return out


def config_of(folder):
  config = llama405b_synthetic.get_config().to_dict()
  config["data"] |= {"path": str(folder / "train.jsonl"), "test_path": str(folder / "test.jsonl")}
  return config


def pairs(folder, target, **options):
  data = config_of(folder)["data"] | {"target": target} | options
  shared = ("name", "seed", "label_fraction", "labelled_only", "augment", "threads")
  return text_pairs(**{name: value for name, value in data.items() if name not in shared})


def test_the_loss_is_on_the_target_alone_and_no_template_is_read(folder):
  data = pairs(folder, "target")
  questions = {item["input"] for item in INPUTS.train}
  for row in (data.train[i] for i in range(200)):
    tokens, mask = row["tokens"], row["mask"]
    heard = data.tokenizer.decode(tokens[:10][row["segment_ids"][:10] > 0][:-1])
    assert heard in questions  # the bare input, and what ends it
    learnt = data.tokenizer.decode(row["label"][mask], skip_special_tokens=True)
    a, _, rest = heard.removesuffix("=?").partition("*")
    b, _, c = rest.partition("+")
    product = int(a) * int(b)
    total = product + int(c)
    assert learnt == f"{a}*{b}={product}\n{product}+{c}={total}\n#{total}"
    # From the source's last token, which tells the first of the target, to the last but one.
    first = np.flatnonzero(mask)[0]
    assert first == 9 and not mask[:9].any() and (row["label"][~mask] == -1).all()
  texts = (folder / "train.jsonl").read_text() + (folder / "chats_target.jsonl").read_text()
  assert "step at a time" not in texts and "Answer:" not in texts


def test_a_teacher_that_gives_the_gold_labels_is_ordinary_fine_tuning(folder, tmp_path):
  rows = [{"source": item["input"], "label": f"#{item['gold']}"} for item in INPUTS.train]
  (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
  own = pairs(folder, "label").train
  gold = pairs(folder, "label", path=str(tmp_path / "gold.jsonl")).train
  ours, theirs = (part.read(np.arange(len(part))) for part in (own, gold))
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name])


def test_both_sides_of_the_comparison_read_as_many_tokens(folder):
  config = config_of(folder)
  seen = {}
  for variant in ("method", "baseline"):
    own = variant_of(config, variant)
    rows = pairs(folder, own["data"]["target"]).train
    seen[variant] = own["batch_size"] * (rows.source_lengths + rows.target_lengths).mean()
  assert abs(seen["baseline"] / seen["method"] - 1) < 0.02


def test_what_is_written_says_how_and_what_was_dropped(tmp_path):
  solve = open_teacher(SOLVER)

  def answer(prompts, decoding):
    if prompts[0].system != STEPS.system:
      return ["?"] * len(prompts)
    return [
      "?" if "2*" in prompt.user else solve.answer([prompt], decoding)[0] for prompt in prompts
    ]

  result = written(
    tmp_path,
    teacher=TextTeacher("some", answer),
    templates=[TEMPLATES["label_only"], STEPS],
  )
  lost = sum("2*" in item["input"] for item in INPUTS.train)
  assert 0 < lost == result["dropped"] and result["pairs"] == 200 - lost
  assert result["template"] == STEPS.id and len(result["validation"]) == 2
  assert json.loads((tmp_path / "synthesis.json").read_text()) == result
  assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 200 - lost
  tests = [json.loads(line) for line in (tmp_path / "test.jsonl").open()]
  assert [row["label"] for row in tests] == [f"#{item['gold']}" for item in INPUTS.test]


def test_a_stopped_job_goes_on_to_the_same_files(folder, tmp_path):
  asked = iter([False] * 3 + [True])
  with pytest.raises(Interrupted, match="kept 84 answers"):  # 20 to validate, two batches of 32
    written(tmp_path, batch_size=32, stop=lambda: next(asked))
  assert not (tmp_path / "train.jsonl").exists()
  written(tmp_path, batch_size=32)
  for name in ("train.jsonl", "test.jsonl", "chats_label.jsonl", "synthesis.json"):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_every_variant_is_a_config(variant):
  config = llama405b_synthetic.get_config(variant).to_dict()
  for which in ("method", "baseline"):
    check_config(variant_of(config, which))
  with pytest.raises(ValueError, match="small, paper"):
    llama405b_synthetic.get_config("large")


def test_the_comparison_grades_what_both_students_write(folder, tmp_path):
  config = config_of(folder) | {"total_steps": 2, "batch_size": 8}
  config["mesh"] |= {"data": 1}
  config["student"] = {"name": "decoder", "width": 8, "depth": 1, "heads": 2}
  config["baseline"]["batch_size"] = 16
  config["eval"] |= {"every": 2, "batch_size": 10, "log_every": 1}
  config["optimizer"]["warmup_steps"] = 0
  found = run_compare(config, tmp_path, seeds=2)
  assert found["metric"] == "exact_match"
  assert all(0 <= value <= 1 for values in found["variants"].values() for value in values)
  assert all(len(values) == 2 for values in found["variants"].values())


def test_a_checkpoint_is_a_teacher_that_its_weights_name(tmp_path):
  names = []
  for seed in (0, 0, 1):
    model = decoder(num_classes=len(TOKENIZER), width=8, depth=1, heads=2)
    folder = tmp_path / f"model{len(names)}"
    described = config_of_spec(model.spec)
    tensors = tensors_of(model, model.init(jax.random.key(seed)))
    write_checkpoint(folder, described, tensors, tokenizer=TOKENIZER)
    names.append(open_teacher(f"checkpoint:{folder}").name)
  assert names[0] == names[1] != names[2]
  short = TextDecoding(max_new_tokens=3)
  teacher = open_teacher(f"checkpoint:{folder}")
  (said,) = teacher.answer([Prompt("s", "u")], short)
  assert (said,) == tuple(open_teacher(f"checkpoint:{folder}").answer([Prompt("s", "u")], short))


def test_the_chats_are_read_as_chats(folder):
  read = list(chat(folder / "chats_label.jsonl").read())
  rendered_one = rendered(read[0], TOKENIZER)
  learnt = [rendered_one.text[a:b] for a, b, weight in rendered_one.weights if weight]
  first = INPUTS.train[0]
  assert len(read) == 200 and learnt == [f"#{first['gold']}<eos>"]
  assert read[0].messages[0] == {"role": "user", "content": first["input"]}


def test_mistakes_are_told(tmp_path):
  for name in ("oracle", "solver:other", "recorded:", "checkpoint:"):
    with pytest.raises(KdjaxError, match=r"--teacher: .* is no teacher; give one of"):
      open_teacher(name)
  with pytest.raises(KdjaxError, match=r"--teacher: .*nowhere"):
    open_teacher("recorded:nowhere")
  (tmp_path / "items.jsonl").write_text('{"input": "a"}')
  assert read_items(str(tmp_path / "items.jsonl"), "--inputs", gold=False) == [{"input": "a"}]
  with pytest.raises(KdjaxError, match=r"--test: .* no field 'gold'"):
    read_items(str(tmp_path / "items.jsonl"), "--test", gold=True)
  with pytest.raises(KdjaxError, match="want validation items"):
    written(tmp_path, templates=[STEPS] * 2, inputs=INPUTS._replace(validation=[]))
  with pytest.raises(KdjaxError, match="no input"):
    written(tmp_path, inputs=INPUTS._replace(train=[]))
  with pytest.raises(KdjaxError, match="none of 200 answers has a label"):
    written(tmp_path / "mute", teacher=TextTeacher("mute", lambda p, d: ["?"] * len(p)))


def test_the_command_writes_the_files_and_tells_mistakes(tmp_path):
  out = Path(tmp_path) / "out"
  flags = (f"--teacher={SOLVER}", "--template=plain", f"--out={out}")
  done = launch("synthesize", *flags, "--task=two_step_arithmetic", "--count=5", "--held=2")
  assert done.returncode == 0, done.stderr
  assert "5 pairs by plain-" in done.stdout and (out / "train.jsonl").exists()
  failed = launch("synthesize", *flags)
  assert failed.returncode == 2 and "error: give --task or --inputs" in failed.stderr
