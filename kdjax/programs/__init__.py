"""Programs: training procedures as pure (init, step) pairs."""

from kdjax.programs.base import Program
from kdjax.programs.distill import DistillState, distill

__all__ = ["DistillState", "Program", "distill"]
