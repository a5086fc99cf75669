"""How many threads torch works with, and how they wait for work.

OpenMP's threads spin while they wait. On a busy two-core machine two spinning threads are
forty times slower than one, so ours sleep instead, which must be said before torch is
loaded. Where torch was there first it is too late for that, and one thread is safe. What
the environment already says (OMP_NUM_THREADS, OMP_WAIT_POLICY) is left as it is.

On two cores one thread it is: most operations are too small to be shared, so that a step of the
default run takes longer with two, and the other core is free for the browser.
"""

import os
import sys

MOST = 4  # small matrices do not repay more
TORCH_WAS_FIRST = "torch" in sys.modules
CHOSEN_BY_USER = "OMP_NUM_THREADS" in os.environ
WAITS_PASSIVELY = not TORCH_WAS_FIRST or os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
if not TORCH_WAS_FIRST:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def settle() -> None:
    """Choose torch's number of threads; called once, by the first room that computes."""
    import torch

    if not CHOSEN_BY_USER:
        cores = torch.get_num_threads()
        torch.set_num_threads(min(MOST, cores) if WAITS_PASSIVELY and cores > 2 else 1)
