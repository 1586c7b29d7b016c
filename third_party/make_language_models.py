"""Makes `reference/language_models`: tiny random checkpoints and what PyTorch computes with them.

  python make_language_models.py --out=reference/language_models \
    --smollm2=SmolLM2-135M-Instruct.Q4_1.gguf --minilm=MODEL_FOLDER --mu=SRC_FOLDER
  python make_language_models.py --out=reference/language_models --mu=SRC_FOLDER --greedy

Needs PyTorch and transformers, which kdjax does not: it is run by hand and never by the tests. Each
of the three options adds one model; without it, that model is left out. README.md beside this file
has the versions that made the files in the repository, and what each array is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

VOCAB, WIDTH, LAYERS, TIME = 96, 32, 3, 24
NEW = 20  # greedy tokens
BASE = {
  "vocab_size": VOCAB,
  "hidden_size": WIDTH,
  "intermediate_size": 48,
  "num_hidden_layers": LAYERS,
  "num_attention_heads": 4,
}
ROTARY = dict(
  BASE, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2
)
ENCODER = dict(BASE, max_position_embeddings=40, hidden_dropout_prob=0.0)
T5 = {
  "vocab_size": VOCAB,
  "d_model": WIDTH,
  "d_kv": 8,
  "d_ff": 48,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "num_heads": 4,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 16,
  "decoder_start_token_id": 0,
}
# Of the four pairs of a head of width 8, the first is kept, the second blended, the rest slowed.
LLAMA3_ROPE = {
  "rope_type": "llama3",
  "rope_theta": 10000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 128,
}
# Both bases are small, so that 24 positions turn even the slowest pair visibly.
GEMMA3_ROPE = {
  "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
  "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def decoders() -> dict[str, hf.PreTrainedModel]:
  llama = dict(ROTARY, rms_norm_eps=1e-5)
  gemma = dict(ROTARY, head_dim=16, query_pre_attn_scalar=24, sliding_window=8)
  neox = dict(BASE, num_attention_heads=2, max_position_embeddings=64, rotary_pct=0.25)
  return {
    "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**llama, tie_word_embeddings=False)),
    "llama_tied": hf.LlamaForCausalLM(hf.LlamaConfig(**llama, tie_word_embeddings=True)),
    "llama3_rope": hf.LlamaForCausalLM(
      hf.LlamaConfig(**{**llama, "max_position_embeddings": 256}, rope_parameters=LLAMA3_ROPE)
    ),
    "mistral": hf.MistralForCausalLM(hf.MistralConfig(**ROTARY, sliding_window=8)),
    "qwen2": hf.Qwen2ForCausalLM(hf.Qwen2Config(**ROTARY)),
    "qwen3": hf.Qwen3ForCausalLM(hf.Qwen3Config(**ROTARY, head_dim=16)),
    "gemma2": hf.Gemma2ForCausalLM(
      hf.Gemma2Config(**gemma, attn_logit_softcapping=4.0, final_logit_softcapping=6.0)
    ),
    "gemma3": hf.Gemma3ForCausalLM(
      hf.Gemma3TextConfig(
        **{**gemma, "num_hidden_layers": 4},
        layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL],
        rope_parameters=GEMMA3_ROPE,
      )
    ),
    "gpt2": hf.GPT2LMHeadModel(
      hf.GPT2Config(
        vocab_size=VOCAB,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
      )
    ),
    "gpt_neox": hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**neox, use_parallel_residual=True)),
    "gpt_neox_sequential": hf.GPTNeoXForCausalLM(
      hf.GPTNeoXConfig(**neox, use_parallel_residual=False)
    ),
  }


def encoders() -> dict[str, hf.PreTrainedModel]:
  return {
    "bert": hf.BertForMaskedLM(hf.BertConfig(**ENCODER)),
    "bert_model": hf.BertModel(hf.BertConfig(**ENCODER)),
    "roberta": hf.RobertaForMaskedLM(
      hf.RobertaConfig(**ENCODER, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
    ),
    "distilbert": hf.DistilBertForMaskedLM(
      hf.DistilBertConfig(
        vocab_size=VOCAB,
        max_position_embeddings=40,
        n_layers=LAYERS,
        n_heads=4,
        dim=WIDTH,
        hidden_dim=48,
      )
    ),
  }


def randomise(model: torch.nn.Module, seed: int) -> None:
  """Large weights: with the usual 0.02 a wrong layer would hardly show in the logits."""
  generator = torch.Generator().manual_seed(seed)
  # Gemma's norms scale by 1 + weight.
  centre = 0.0 if "gemma" in getattr(model.config, "model_type", "") else 1.0
  with torch.no_grad():
    for name, value in model.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      if value.ndim == 1 and not name.endswith("bias"):
        value.copy_(centre + 0.2 * noise)
      elif value.ndim == 1:
        value.copy_(0.2 * noise)
      else:
        embedding = any(part in name for part in ("embed", "wte", "wpe", "shared", "bias"))
        value.copy_((0.5 if embedding else 0.25) * noise)


def stacked(values) -> np.ndarray:
  return np.stack([value.numpy() for value in values])


def save(folder: Path, model: hf.PreTrainedModel, inputs: dict, outputs: dict) -> None:
  """Writes a folder and asserts that what it holds gives the stored logits when loaded again."""
  model.save_pretrained(folder)
  again = type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
  again.eval()
  out = again(**{key: torch.from_numpy(value) for key, value in inputs.items()})
  key = "logits" if "logits" in outputs else "last_hidden_state"
  np.testing.assert_array_equal(out[key].numpy(), outputs[key])
  write(folder, inputs | outputs)


def write(folder: Path, arrays: dict) -> None:
  for name, value in arrays.items():
    if value.dtype.kind == "f" and not (value.dtype == np.float32 and np.isfinite(value).all()):
      raise ValueError(f"{folder.name}: {name} is {value.dtype} or not finite")
  np.savez_compressed(folder / "reference.npz", **arrays)
  size = sum(path.stat().st_size for path in folder.iterdir())
  logits = arrays.get("logits", arrays.get("last_hidden_state"))
  print(f"{folder.name:20} {size / 1000:6.0f} kB  std of the output {logits.std():.2f}")


def last_layer(model: hf.PreTrainedModel, layer: torch.nn.Module, inputs: dict):
  """Runs the model; returns its output and what the given layer returned."""
  seen = []
  hook = layer.register_forward_hook(lambda _, __, out: seen.append(out))
  out = model(**inputs, output_hidden_states=True, output_attentions=True)
  hook.remove()
  return out, (seen[0][0] if isinstance(seen[0], tuple) else seen[0]).numpy()


def make_decoder(folder: Path, model: hf.PreTrainedModel, seed: int) -> None:
  randomise(model, seed)
  model.eval().set_attn_implementation("eager")
  ids = np.random.default_rng(seed).integers(0, VOCAB, (2, TIME))
  body = model.base_model
  layers = body.h if hasattr(body, "h") else body.layers
  out, before_norm = last_layer(model, layers[-1], {"input_ids": torch.from_numpy(ids)})
  outputs = {
    "logits": out.logits.numpy(),
    "hidden_states": stacked(out.hidden_states),
    "last_layer": before_norm,
  }
  assert not np.allclose(outputs["hidden_states"][-1], before_norm)  # HF's last is normalised
  if folder.name in ("llama", "gemma2"):
    outputs["attentions"] = stacked(out.attentions)
  save(folder, model, {"input_ids": ids}, outputs)


def make_encoder(folder: Path, model: hf.PreTrainedModel, seed: int) -> None:
  randomise(model, seed)
  model.eval().set_attn_implementation("eager")
  ids = np.random.default_rng(seed).integers(2, VOCAB, (2, TIME))
  mask = (np.arange(TIME) < np.array([[TIME], [17]])).astype(np.int64)
  inputs = {
    "input_ids": np.where(mask == 1, ids, model.config.pad_token_id),
    "attention_mask": mask,
  }
  if folder.name.startswith("bert"):
    inputs["token_type_ids"] = (np.arange(TIME) >= np.array([[10], [6]])).astype(np.int64) * mask
  body = model.base_model
  layers = (body.transformer if hasattr(body, "transformer") else body.encoder).layer
  out, last = last_layer(
    model, layers[-1], {key: torch.from_numpy(value) for key, value in inputs.items()}
  )
  outputs = {"hidden_states": stacked(out.hidden_states)}
  np.testing.assert_array_equal(outputs["hidden_states"][-1], last)  # post-norm: nothing follows
  if folder.name == "bert_model":
    outputs["last_hidden_state"] = out.last_hidden_state.numpy()
    outputs["pooler_output"] = out.pooler_output.numpy()
  else:
    outputs["logits"] = out.logits.numpy()
  if folder.name == "bert":
    outputs["attentions"] = stacked(out.attentions)
  save(folder, model, inputs, outputs)


def make_t5(folder: Path, config: hf.T5Config, seed: int) -> None:
  model = hf.T5ForConditionalGeneration(config)
  randomise(model, seed)
  with torch.no_grad():  # T5 does not divide scores by the root of the head width
    for name, value in model.named_parameters():
      if name.endswith("Attention.q.weight"):
        value.mul_(0.4)
  model.eval().set_attn_implementation("eager")
  rng = np.random.default_rng(seed)
  mask = (np.arange(TIME) < np.array([[TIME], [17]])).astype(np.int64)
  decoder_ids = rng.integers(2, VOCAB, (2, 16))
  decoder_ids[:, 0] = config.decoder_start_token_id
  inputs = {
    "input_ids": np.where(mask == 1, rng.integers(2, VOCAB, (2, TIME)), 0),
    "attention_mask": mask,
    "decoder_input_ids": decoder_ids,
  }
  out = model(
    **{key: torch.from_numpy(value) for key, value in inputs.items()}, output_hidden_states=True
  )
  outputs = {
    "logits": out.logits.numpy(),
    "encoder_last_hidden_state": out.encoder_last_hidden_state.numpy(),
    "encoder_hidden_states": stacked(out.encoder_hidden_states),
    "decoder_hidden_states": stacked(out.decoder_hidden_states),
  }
  save(folder, model, inputs, outputs)


def make_mu(folder: Path, source: Path, interleaved: bool, seed: int) -> None:
  """The RoPE encoder-decoder of microsoft/encoder-decoder-slm; `source` is its folder src/."""
  sys.path.insert(0, str(source))
  from mu.models.modeling_mu import Mu, MuConfig

  config = MuConfig(
    n_encoder_layer=2,
    n_decoder_layer=3,
    n_embd=WIDTH,
    qkv_embd=48,
    is_interleaved=interleaved,
    hidden_dim=48,
    n_head=6,
    n_kv_head=3,
    block_size=64,
    dropout=0.0,
    vocab_size=VOCAB,
  )
  model = Mu(config, device="cpu").eval()
  randomise(model, seed)
  rng = np.random.default_rng(seed)
  ids = np.where(np.arange(TIME) < np.array([[TIME], [17]]), rng.integers(1, VOCAB, (2, TIME)), 0)
  decoder_ids = rng.integers(1, VOCAB, (2, 16))
  encoded, mask = model.encode(torch.from_numpy(ids))
  logits = model(torch.from_numpy(ids), torch.from_numpy(decoder_ids)).logits
  folder.mkdir(parents=True, exist_ok=True)
  state = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
  save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
  content = {"model_type": "mu", **dataclasses.asdict(config)}
  (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
  arrays = {
    "input_ids": ids,
    "attention_mask": mask.numpy().astype(np.int64),
    "decoder_input_ids": decoder_ids,
    "logits": logits.numpy(),
    "encoder_last_hidden_state": encoded.numpy(),
  }
  write(folder, arrays)


def make_greedy_t5(folder: Path) -> None:
  """What `generate` writes greedily, of a folder that is there; nothing ends a text."""
  model = hf.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
  inputs = np.load(folder / "reference.npz")
  generated = model.generate(
    input_ids=torch.from_numpy(inputs["input_ids"]),
    attention_mask=torch.from_numpy(inputs["attention_mask"]),
    generation_config=hf.GenerationConfig(
      do_sample=False,
      max_new_tokens=NEW,
      pad_token_id=0,
      decoder_start_token_id=0,
      use_cache=False,  # its cache has as many layers as the encoder, of which there are fewer
      output_scores=True,
      return_dict_in_generate=True,
    ),
  )
  write_greedy(folder, generated.sequences[:, 1:], torch.stack(generated.scores, 1))


def make_greedy_mu(folder: Path, source: Path) -> None:
  """The likeliest token after each pass over the whole target, which begins with token 1."""
  sys.path.insert(0, str(source))
  from mu.models.modeling_mu import Mu, MuConfig

  content = json.loads((folder / "config.json").read_text())
  fields = {field.name for field in dataclasses.fields(MuConfig)}
  model = Mu(MuConfig(**{k: v for k, v in content.items() if k in fields}), device="cpu").eval()
  model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
  encoded, mask = model.encode(torch.from_numpy(np.load(folder / "reference.npz")["input_ids"]))
  target = torch.ones((2, 1), dtype=torch.long)
  for _ in range(NEW):
    logits = model.decode(target, encoded, mask)
    target = torch.cat([target, logits[:, -1:].argmax(-1)], dim=1)
  assert (target != 0).all()  # it masks what follows the padding token
  write_greedy(folder, target[:, 1:], logits)


def write_greedy(folder: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
  assert torch.equal(logits.argmax(-1), ids)
  best = logits.topk(2).values
  lead = (best[..., 0] - best[..., 1]).min().item()
  print(f"{folder.name}: smallest lead {lead:.4f} of", ids.tolist())
  log_probs = torch.log_softmax(logits, -1).gather(2, ids[..., None])[..., 0]
  np.savez_compressed(folder / "greedy.npz", ids=ids.numpy(), log_probs=log_probs.numpy())


def make_smollm2(path: Path, gguf: Path) -> None:
  where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
  tokenizer = hf.AutoTokenizer.from_pretrained(**where)
  model = hf.AutoModelForCausalLM.from_pretrained(
    **where, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  question = [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}]
  chat = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
  prompts = {
    "plain": "The lighthouse keeper climbed the stairs every evening, because",
    "code": 'def fibonacci(n):\n  """Returns the n-th Fibonacci number."""\n',
    "chat": chat,
  }
  arrays = {}
  for name, text in prompts.items():
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    logits = model(input_ids=ids).logits[0]
    log_probs = torch.log_softmax(logits, -1)
    length = ids.shape[1]
    positions = np.array([length // 3, 2 * length // 3, length - 1])
    generated = model.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      generation_config=hf.GenerationConfig(do_sample=False, max_new_tokens=32, pad_token_id=2),
      output_scores=True,
      return_dict_in_generate=True,
    )
    greedy = generated.sequences[0, length:]
    best = torch.cat(generated.scores).topk(2).values
    arrays |= {
      f"{name}_text": np.array(text),
      f"{name}_ids": ids[0].numpy(),
      f"{name}_positions": positions,
      f"{name}_logits": logits[positions].numpy(),
      f"{name}_log_sum_exp": torch.logsumexp(logits, -1).numpy(),
      f"{name}_next_log_probs": log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy(),
      f"{name}_greedy": greedy.numpy(),
      f"{name}_greedy_text": np.array(tokenizer.decode(greedy)),
    }
    print(f"smollm2 {name}: {length} tokens ->", repr(tokenizer.decode(greedy)))
    print("  smallest lead of the greedy token:", (best[:, 0] - best[:, 1]).min().item())
  # Of each tensor: sum, sum of magnitudes, a sum weighted by position, which sees permuted rows.
  state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
  names = sorted(state)
  arrays["tensor_names"] = np.array(names)
  arrays["tensor_sums"] = np.array([checksums(state[name].numpy()) for name in names])
  np.savez_compressed(path, **arrays)


def checksums(value: np.ndarray) -> tuple[float, float, float]:
  flat = value.astype(np.float64).ravel()
  return flat.sum(), np.abs(flat).sum(), flat @ (np.arange(flat.size) % 1009 / 1009)


def make_minilm(path: Path, folder: Path) -> None:
  tokenizer = hf.AutoTokenizer.from_pretrained(folder)
  model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
  sentences = [
    "A student network learns from a teacher network.",
    "Knowledge distillation trains a small model to imitate a large one.",
    "It rained all afternoon, so the picnic was moved to the old barn behind the orchard.",
    "Tea",
  ]
  inputs = tokenizer(sentences, padding=True, return_tensors="pt")
  hidden = model.eval()(**inputs).last_hidden_state
  mask = inputs["attention_mask"][..., None].float()
  mean = (hidden * mask).sum(1) / mask.sum(1)
  embeddings = torch.nn.functional.normalize(mean, dim=-1)
  print("minilm similarities\n", (embeddings @ embeddings.T).numpy().round(3))
  np.savez_compressed(
    path,
    sentences=np.array(sentences),
    **{key: value.numpy() for key, value in inputs.items()},
    last_hidden_state=hidden.numpy(),
    embeddings=embeddings.numpy(),
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--smollm2", type=Path, help="the GGUF file")
  parser.add_argument("--minilm", type=Path, help="the folder of all-MiniLM-L6-v2")
  parser.add_argument("--mu", type=Path, help="src/ of microsoft/encoder-decoder-slm")
  parser.add_argument(
    "--greedy", action="store_true", help="only greedy.npz of the encoder-decoders in --out"
  )
  args = parser.parse_args()
  torch.manual_seed(0)
  torch.set_grad_enabled(False)
  torch.set_num_threads(1)
  if args.greedy:
    for name in ("t5", "t5_v11"):
      make_greedy_t5(args.out / name)
    if args.mu:
      make_greedy_mu(args.out / "mu", args.mu)
    return
  for seed, (name, model) in enumerate(decoders().items()):
    make_decoder(args.out / name, model, seed)
  for seed, (name, model) in enumerate(encoders().items(), start=20):
    make_encoder(args.out / name, model, seed)
  make_t5(args.out / "t5", hf.T5Config(**T5, feed_forward_proj="relu"), seed=30)
  gated = hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
  make_t5(args.out / "t5_v11", gated, seed=31)
  if args.mu:
    make_mu(args.out / "mu", args.mu, interleaved=False, seed=40)
    make_mu(args.out / "mu_interleaved", args.mu, interleaved=True, seed=41)
  if args.smollm2:
    make_smollm2(args.out / "smollm2.npz", args.smollm2)
  if args.minilm:
    make_minilm(args.out / "minilm.npz", args.minilm)


if __name__ == "__main__":
  main()
