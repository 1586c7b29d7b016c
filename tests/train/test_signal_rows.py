"""What cannot be cached is told."""

import pytest

from kdjax.data import augment, digits
from kdjax.errors import KdjaxError
from kdjax.train import signal_rows


def test_mixtures_of_images_are_not_cached():
  rows = digits().train
  mixed = augment.compose(augment.flip(), augment.mixup())
  with pytest.raises(KdjaxError, match="cannot be cached with mixup"):
    signal_rows.signal_rows({"data": {"augment": ()}}, rows, mixed, seed=0)
