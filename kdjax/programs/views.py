"""Two views of every image, given to the models as rows of one batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdjax.objectives.base import Batch

SECOND = "second_image"
# What a teacher on other devices has said of a batch's rows: [B, 2, ...] where they have two views.
TOLD = "told"


def both_views(batch: Batch) -> Batch:
  """A batch of 2 B rows: of each example its two views in turn; other batches as they are.

  Batch normalisation then sees both views together. The views of an example lie side by side, so
  that no row changes its device.

  Args:
    batch: with `image` and `second_image` [B, H, W, C] where there are two views (see
      `kdjax.data.augment.two_views`); every other array has B rows.

  Returns:
    A batch without `second_image`, and with `view`, int32 [2 B]: 0, 1, 0, 1, ...
  """
  if SECOND not in batch:
    return batch
  image = jnp.stack([batch["image"], batch[SECOND]], axis=1)
  own = ("image", SECOND, TOLD)
  rest = {key: jnp.repeat(x, 2, axis=0) for key, x in batch.items() if key not in own}
  views = jnp.tile(jnp.arange(2, dtype=jnp.int32), image.shape[0])
  if TOLD in batch:
    rest[TOLD] = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), batch[TOLD])
  return rest | {"image": image.reshape((-1, *image.shape[2:])), "view": views}
