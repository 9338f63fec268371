"""Small networks laid over a finished restorer, which stays as it is: error bars, and realistic pictures.

cap = BayesCap()
fit(cap, cap.loss, pairs)                       # pairs of restored and true pictures
low, high = cap(restored).interval(0.9)
"""

from bayesq.posthoc.cap import BayesCap, GeneralisedGaussian
from bayesq.posthoc.fit import fit
from bayesq.posthoc.flow import Flow

__all__ = ["BayesCap", "Flow", "GeneralisedGaussian", "fit"]
