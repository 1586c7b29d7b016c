"""Words, read off a vocabulary."""

from pathlib import Path

from kdjax.data.text.words import word_pieces
from kdjax.data.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer(
  str(Path(__file__).parents[3] / "third_party" / "models" / "smollm2_1024")
)


def test_pieces_of_words_and_identifiers_stay_together():
  begins, ends = word_pieces(TOKENIZER)
  ids = TOKENIZER("def _unwritten(batch_size): return 12.5")["input_ids"]
  spans, text = [], ""
  for i, token in enumerate(ids):
    if i and not (ends[ids[i - 1]] and begins[token]):
      spans.append(text)
      text = ""
    text += TOKENIZER.decode([token])
  spans.append(text)
  # A space in front belongs to its word where they share a token, and never goes on with another.
  assert spans == [
    "def",
    " ",
    "_unwritten",
    "(",
    "batch_size",
    "):",
    " return",
    " ",
    "12",
    ".",
    "5",
  ]
  assert len(ids) > len(spans)


def test_the_end_of_a_text_is_in_no_word():
  begins, ends = word_pieces(TOKENIZER)
  assert not begins[TOKENIZER.eos_token_id] and not ends[TOKENIZER.eos_token_id]
  assert len(begins) == len(ends) == len(TOKENIZER.get_vocab())
