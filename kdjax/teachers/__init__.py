"""Teachers: frozen models, ensembles, the student's moving average, cached signals."""

from kdjax.teachers.after_source import after_source
from kdjax.teachers.base import Teacher
from kdjax.teachers.cached import cached
from kdjax.teachers.ema import ema
from kdjax.teachers.frozen import ensemble, frozen
from kdjax.teachers.prefixed import prefixed

__all__ = ["Teacher", "after_source", "cached", "ema", "ensemble", "frozen", "prefixed"]
