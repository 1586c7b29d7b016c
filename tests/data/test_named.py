"""Images whose classes have names: prompts, and labels that are held out."""

from pathlib import Path

import numpy as np
import pytest

from kdjax.data import digits, load_tokenizer, named_classes
from kdjax.errors import KdjaxError

TOKENIZER = str(Path(__file__).parents[2] / "configs" / "tokenizers" / "bytes")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GIVEN = {"images": "digits", "names": NAMES, "tokenizer": TOKENIZER, "novel": ("nine", "one")}


def test_prompts_say_the_names_and_end_alike():
  data = named_classes(**GIVEN, template="a {} here")
  tokenizer = load_tokenizer(TOKENIZER)
  end = tokenizer.eos_token_id
  assert len(data.class_texts) == 10 and len({len(row) for row in data.class_texts}) == 1
  for name, row in zip(NAMES, data.class_texts, strict=True):
    first = row.index(end)
    assert tokenizer.decode(row[:first]) == f"a {name} here"
    assert set(row[first:]) == {end}
    assert max(row) < data.vocab


def test_labels_of_novel_classes_are_held_out_of_training_alone():
  data, whole = named_classes(**GIVEN), digits()
  assert data.novel == (1, 9)
  labels = whole.train.labels
  np.testing.assert_array_equal(data.train.labels, np.where(np.isin(labels, [1, 9]), -1, labels))
  places = np.arange(5)
  np.testing.assert_array_equal(data.train.read(places)["image"], whole.train.read(places)["image"])
  np.testing.assert_array_equal(data.test.labels, whole.test.labels)
  told = named_classes(**GIVEN, told=True)
  np.testing.assert_array_equal(told.train.labels, labels)
  assert told.novel == data.novel


def test_images_may_have_arguments():
  data = named_classes(**GIVEN | {"images": {"name": "digits", "test_size": 97}})
  assert len(data.test) == 97


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"images": "digit"}, r"config.data.images.name = 'digit' does not exist \(did you mean"),
    ({"names": NAMES[:9]}, "names has 9 different names; digits has 10 classes"),
    ({"novel": ("ten",)}, r"novel: \['ten'\] are not among config.data.names"),
    ({"novel": NAMES}, "holds out every class"),
    ({"template": "a photo"}, r"template = 'a photo' must have {} where"),
    ({"images": {"name": "digits", "size": 3}}, "size is not an argument of 'digits'"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  with pytest.raises(KdjaxError, match=message):
    named_classes(**GIVEN | changed)
