"""Teachers: frozen models, ensembles, the student's moving average, cached signals."""

from kdjax.teachers.base import Teacher
from kdjax.teachers.cached import cached
from kdjax.teachers.ema import ema
from kdjax.teachers.frozen import ensemble, frozen
from kdjax.teachers.prefixed import prefixed

__all__ = ["Teacher", "cached", "ema", "ensemble", "frozen", "prefixed"]
