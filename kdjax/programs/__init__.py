"""Programs: training procedures as pure (init, step) pairs."""

from kdjax.programs.adaptive_replay import adaptive_replay
from kdjax.programs.base import Program, Start
from kdjax.programs.bilevel import bilevel
from kdjax.programs.distill import DistillState, distill
from kdjax.programs.on_policy import on_policy
from kdjax.programs.on_policy_targets import on_policy_targets
from kdjax.programs.replicate import replicate

# What a config may name.
__all__ = ["adaptive_replay", "bilevel", "distill", "on_policy", "on_policy_targets"]
