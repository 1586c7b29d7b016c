"""Programs: training procedures as pure (init, step) pairs."""

from kdjax.programs.base import Program
from kdjax.programs.bilevel import bilevel
from kdjax.programs.distill import DistillState, distill
from kdjax.programs.replicate import replicate

__all__ = ["bilevel", "distill"]  # what a config may name
