"""A simulator of lives and of the records they leave, with the risk that was true all along.

``parameters.yaml`` holds every parameter. ``lives`` come first, ``records`` are what ``visits``
write of a life, ``truth`` is what was so, and ``limit`` how much of it any record tells.
"""

from medbert.data.synthetic.files import write, write_flat
from medbert.data.synthetic.limit import record_risk
from medbert.data.synthetic.simulation import Simulation, simulate
from medbert.data.synthetic.truth import true_risk

__all__ = ["Simulation", "record_risk", "simulate", "true_risk", "write", "write_flat"]
