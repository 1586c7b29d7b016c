"""Laws: what small runs say of the sizes of larger ones. NumPy alone; nothing is trained here."""

from kdjax.laws.capacity_gap import CapacityGap as CapacityGap
from kdjax.laws.capacity_gap import Run as Run
from kdjax.laws.capacity_gap import best_teacher as best_teacher
from kdjax.laws.capacity_gap import choose_teacher as choose_teacher
from kdjax.laws.capacity_gap import fit_capacity_gap as fit_capacity_gap
from kdjax.laws.teacher_hacking import PowerLaw as PowerLaw
from kdjax.laws.teacher_hacking import Verdict as Verdict
from kdjax.laws.teacher_hacking import detect as detect
from kdjax.laws.teacher_hacking import fit_power_law as fit_power_law
from kdjax.laws.teacher_hacking import rebound as rebound
