"""Settings for the whole suite: eight simulated devices, no silent promotion of ranks or dtypes."""

import atexit
import gc
import os
import shutil
import tempfile

from tests import xla

# Read by XLA when the backend starts, so it is set before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(devices=8)}"

# Many tests start the same few jobs as processes of their own, and two workers share one machine:
# what one has compiled the others read. The first process to come here makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _programs = tempfile.mkdtemp(prefix="kdjax_programs_")
  atexit.register(shutil.rmtree, _programs, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# optax's Adam mixes float and int itself, so what runs an optimiser cannot be strict about dtypes.
RUN_OPTIMISERS = {"plan", "programs", "train", "end_to_end", "faults"}


@pytest.fixture(autouse=True)
def _dtype_promotion(request):
  if RUN_OPTIMISERS & set(request.path.parts):
    with jax.numpy_dtype_promotion("standard"):
      yield
  else:
    yield


@pytest.fixture(autouse=True, scope="module")
def _out_of_sight_of_the_collector():
  """No collection visits again what imports and earlier modules left alive."""
  gc.collect()
  gc.freeze()
