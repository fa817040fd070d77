"""How much one root event may cause, and by which way: the guard against loops.

Path:   commit, events, hostcalls.functions -> here, whenever a run causes another one
Never:  counts over all runs of a root: each run has a share of the budget for all that it causes.
"""

from typing import Final

CAUSAL_BUDGET: Final = 10_000  # runs that one root event may cause, all told
