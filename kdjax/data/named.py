"""Images whose classes have names, some of them with their labels held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.base import UNLABELLED, DataSet
from kdjax.data.labels import View
from kdjax.data.tokenizers import load_tokenizer, vocab_size
from kdjax.errors import KdjaxError, within
from kdjax.resolve import resolve


def named_classes(
  *,
  images: str | Mapping[str, Any],
  names: Sequence[str],
  tokenizer: str,
  novel: Sequence[str] = (),
  told: bool = False,
  template: str = "a photo of {}.",
) -> DataSet:
  """A data set of images with a text for each class, to learn some classes by their names alone.

  Args:
    images: the data set of `kdjax.data` that has the images, such as "fashion_mnist", or that with
      its arguments, as {"name": "array_record_images", "path": FOLDER}.
    names: of the classes in their order, as the template wants them: "an ankle boot".
    tokenizer: of the texts; see `kdjax.data.load_tokenizer`. Texts get its last token (`eos`).
    novel: names of the held-out classes, whose training labels are hidden (-1).
    told: leaves the labels of the novel classes in place, for a teacher that knows all.
    template: the text around a name.

  Returns:
    The data set with `class_texts`, `vocab` and `novel`.

  Raises:
    KdjaxError: unknown images or novel names, names that do not fit the classes, a template without
      {}, a tokenizer without an end.
  """
  from kdjax import data  # it names this file's function, too

  spec = {"name": images} if isinstance(images, str) else dict(images)
  own = {name: value for name, value in spec.items() if name != "name"}
  with within("config.data.images"):
    whole: DataSet = resolve(data, spec.get("name"), own, field="config.data.images.name")()
  if len(names) != whole.num_classes or len(set(names)) != len(names):
    raise KdjaxError(
      f"config.data.names has {len(set(names))} different names; {whole.name} has"
      f" {whole.num_classes} classes: give each its own"
    )
  if unknown := sorted(set(novel) - set(names)):
    raise KdjaxError(f"config.data.novel: {unknown} are not among config.data.names {list(names)}")
  if len(set(novel)) == len(names):
    raise KdjaxError("config.data.novel holds out every class; leave some of them base classes")
  if "{}" not in template:
    raise KdjaxError(f"config.data.template = {template!r} must have {{}} where the name goes")
  read = load_tokenizer(tokenizer)
  end = read.eos_token_id
  if end is None:
    raise KdjaxError(f"config.data.tokenizer = {tokenizer!r} has no eos token to end a text with")
  texts = [[*read.encode(template.format(name), add_special_tokens=False), end] for name in names]
  if read.bos_token_id is not None and read.bos_token_id != end:
    texts = [[read.bos_token_id, *text] for text in texts]
  longest = max(map(len, texts))
  held = tuple(sorted(list(names).index(name) for name in set(novel)))
  train = whole.train
  if held and not told:
    labels = train.labels
    labels = np.where(np.isin(labels, held), np.int32(UNLABELLED), labels)
    train = View(train, np.arange(len(train)), labels)
  return whole._replace(
    train=train,
    class_texts=tuple(tuple(text + [end] * (longest - len(text))) for text in texts),
    vocab=vocab_size(read),
    novel=held,
  )
