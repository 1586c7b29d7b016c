"""Checkpoints: what comes back, on which mesh, and what is kept."""

import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.train import checkpoint
from kdjax.train.checkpoint import Checkpoints, checksums_of, fingerprint
from kdjax.train.mesh import make_mesh


class State(NamedTuple):
  step: Any
  params: Any
  model_state: Any
  opt_state: Any
  ema: Any


def state(value: float = 1.0) -> State:
  kernel = value * jnp.arange(32.0).reshape(8, 4)
  return State(
    step=jnp.int32(3),
    params={"kernel": kernel, "half": kernel.astype(jnp.bfloat16)},
    model_state={},
    opt_state=({"mu": kernel + 1}, ()),
    ema=(),
  )


def placed(tree, mesh, spec):
  def one(x):
    return NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec())

  return jax.tree.map(one, tree)


def restore(checkpoints, like, mesh=None, spec=None, **arguments):
  mesh = mesh or make_mesh(data=1)
  shardings = placed(like, mesh, spec or PartitionSpec())
  return checkpoints.restore(like._asdict(), shardings._asdict(), **arguments)


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "checkpoints"


def saved(folder, steps=(1,), metrics=None, **options):
  checkpoints = Checkpoints(folder, **options)
  for step in steps:
    values = None if metrics is None else {"accuracy": metrics[step]}
    checkpoints.save(step, state(float(step)), {"data": {"position": step}}, values)
  checkpoints.wait()
  return checkpoints


def test_every_leaf_comes_back_with_type_shape_and_json(folder):
  saved(folder).close()
  found = restore(Checkpoints(folder), state())
  assert found.step == 1 and found.meta["data"] == {"position": 1}
  back = State(**found.items)
  assert jax.tree.structure(back) == jax.tree.structure(state())
  jax.tree.map(np.testing.assert_array_equal, back, state())
  assert back.params["half"].dtype == jnp.bfloat16
  assert fingerprint(back) == fingerprint(state())


@pytest.mark.parametrize(
  ("before", "after"),
  [
    (({"data": 1}, PartitionSpec()), ({"data": 8}, PartitionSpec("data"))),
    (({"data": 8}, PartitionSpec("data")), ({"data": 2, "fsdp": 4}, PartitionSpec("fsdp", "data"))),
  ],
)
def test_another_mesh_gets_equal_values(folder, before, after):
  mesh, spec = make_mesh(**before[0]), before[1]
  start = jax.device_put(state(), placed(state(), mesh, spec))
  checkpoints = Checkpoints(folder)
  checkpoints.save(1, start, {}, None)
  checkpoints.close()
  found = restore(Checkpoints(folder), state(), make_mesh(**after[0]), after[1])
  kernel = found.items["params"]["kernel"]
  assert kernel.sharding.spec == after[1]
  assert fingerprint(State(**found.items)) == fingerprint(state())


def test_a_save_does_not_ask_for_a_common_stop(folder, monkeypatch):
  # A question by the number of its step would set back the count of the loop's questions.
  asked = []

  def sync_point(number):
    asked.append(number)
    return False

  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", sync_point)
  saved(folder, steps=(1, 2)).close()
  assert not asked


def test_weights_can_be_read_without_the_rest(folder):
  saved(folder).close()
  one = {"params": state().params}
  found = Checkpoints(folder, read_only=True).restore(
    one, placed(one, make_mesh(data=1), PartitionSpec())
  )
  assert set(found.items) == {"params"}
  np.testing.assert_array_equal(found.items["params"]["kernel"], state().params["kernel"])


def test_the_newest_and_the_best_are_kept(folder):
  accuracy = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7, 5: 0.8}
  checkpoints = saved(folder, accuracy, accuracy, keep_last=2, keep_best=1)
  assert checkpoints.steps() == [2, 4, 5]


def test_a_saved_state_may_be_donated_at_once(folder):
  checkpoints = Checkpoints(folder)
  start = state()
  checkpoints.save(1, start, {}, None)
  after = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(start)
  jax.block_until_ready(after)
  checkpoints.close()
  found = restore(Checkpoints(folder), state())
  assert fingerprint(State(**found.items)) == fingerprint(state())


def damage(folder, step):
  for path in (folder / str(step) / "params").rglob("*"):
    if path.is_file() and path.stat().st_size > 64:
      path.write_bytes(path.read_bytes()[:32])


def test_a_damaged_newest_one_is_moved_aside_for_the_one_before(folder, caplog):
  saved(folder, (1, 2)).close()
  damage(folder, 2)
  checkpoints = Checkpoints(folder)
  found = restore(checkpoints, state())
  assert found.step == 1
  np.testing.assert_array_equal(found.items["params"]["kernel"], state(1.0).params["kernel"])
  assert "checkpoint 2" in caplog.text and "damaged" in caplog.text
  assert (folder / "damaged-2").exists()
  checkpoints.save(2, state(2.0), {}, None)  # the step can be saved again
  checkpoints.close()
  assert restore(Checkpoints(folder), state()).step == 2


@pytest.mark.parametrize("bit", range(0, 32, 5))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bfloat16])
def test_one_flipped_bit_changes_the_checksum_and_a_mesh_does_not(bit, dtype):
  kernel = jax.random.normal(jax.random.key(0), (8, 4)).astype(dtype)
  before = checksums_of({"kernel": kernel})
  sharding = NamedSharding(make_mesh(data=4, fsdp=2), PartitionSpec("data", "fsdp"))
  assert checksums_of({"kernel": jax.device_put(kernel, sharding)}) == before
  words = np.asarray(kernel).copy().view(f"uint{8 * kernel.dtype.itemsize}")
  words[bit % 8, bit % 4] ^= words.dtype.type(1 << (bit % (8 * kernel.dtype.itemsize)))
  flipped = jnp.asarray(words.view(kernel.dtype))
  assert checksums_of({"kernel": flipped}) != before


def test_bits_that_can_be_read_but_are_wrong_count_as_damage(folder, monkeypatch):
  saved(folder, (1,)).close()
  # What a flipped bit in a file amounts to: other bits arrive than were summed up.
  other = {"params/kernel": 1}
  monkeypatch.setattr(
    checkpoint, "checksums_of", lambda tree: checksums_of(tree) | other, raising=True
  )
  saved(folder, (2,)).close()
  monkeypatch.undo()
  assert restore(Checkpoints(folder), state()).step == 1
  assert (folder / "damaged-2").exists()


def test_a_digit_of_the_json_that_is_another_counts_as_damage(folder):
  saved(folder, (1, 2)).close()
  (file,) = (p for p in (folder / "2" / "meta").rglob("*") if b"position" in p.read_bytes())
  text = file.read_bytes()
  file.write_bytes(text.replace(b'"position": 2', b'"position": 3'))
  assert file.read_bytes() != text
  found = restore(Checkpoints(folder), state())
  assert found.step == 1 and found.meta["data"] == {"position": 1}


def test_an_unfinished_one_is_skipped(folder):
  saved(folder, (1, 2)).close()
  shutil.rmtree(folder / "2" / "training")
  assert restore(Checkpoints(folder), state()).step == 1


def test_when_none_can_be_read_nothing_is_touched(folder):
  saved(folder, (1, 2)).close()
  damage(folder, 1)
  damage(folder, 2)
  with pytest.raises(KdjaxError, match=r"no checkpoint in .* can be read"):
    restore(Checkpoints(folder), state())
  assert {"1", "2"} <= {path.name for path in folder.iterdir()}


def test_another_architecture_is_told_leaf_by_leaf(folder):
  saved(folder).close()
  other = state()._replace(params={"kernel": jnp.zeros((8, 5)), "half": state().params["half"]})
  with pytest.raises(KdjaxError, match=r"params/kernel: saved float32\[8, 4\], wanted .*8, 5"):
    restore(Checkpoints(folder), other)


def test_another_run_is_refused_and_kept(folder):
  saved(folder).close()

  def refuse(meta):
    raise KdjaxError("another run")

  with pytest.raises(KdjaxError, match="another run"):
    restore(Checkpoints(folder), state(), matches=refuse)
  assert (folder / "1").exists()


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(KdjaxError, match=r"cannot write to .*file/checkpoints.*--workdir"):
    Checkpoints(tmp_path / "file" / "checkpoints")


def test_saving_a_step_twice_is_told(folder):
  checkpoints = saved(folder, (5,))
  with pytest.raises(KdjaxError, match="step 5 was not saved"):
    checkpoints.save(5, state(), {}, None)
  checkpoints.close()


def test_fingerprints_tell_values_names_and_types_apart():
  trees = [
    {"a": jnp.zeros(2)},
    {"b": jnp.zeros(2)},
    {"a": jnp.zeros(2, jnp.int32)},
    {"a": jnp.zeros((1, 2))},
    {"a": jnp.array([0.0, 1e-30])},
  ]
  assert len({fingerprint(tree) for tree in trees}) == len(trees)
