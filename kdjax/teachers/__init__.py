"""Teachers: frozen models, ensembles, and the student's moving average."""

from kdjax.teachers.base import Teacher
from kdjax.teachers.ema import ema
from kdjax.teachers.frozen import ensemble, frozen

__all__ = ["Teacher", "ema", "ensemble", "frozen"]
