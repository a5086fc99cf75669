"""How many threads torch works with, and how they wait for work.

OpenMP's threads spin while they wait. On a busy two-core machine two spinning threads are
forty times slower than one, so ``settle`` lets them sleep instead, which must be said before torch
is loaded. Where torch was there first it is too late for that, and one thread is safe. What
the environment already says (OMP_NUM_THREADS, OMP_WAIT_POLICY) is left as it is.

On two cores one thread is used: most operations are too small to be shared, so a step of the
default run takes longer with two threads, and the other core is free for the browser.

Importing this, or any other module here, changes nothing: the command line, the notebooks' set-up
cell, the tests and the benchmarks call ``settle``.
"""

import os
import sys

MOST = 4  # small matrices do not repay more


def settle() -> None:
    """Let torch's threads sleep while they wait, and choose their number. A second call changes
    nothing more."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sleeps = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        cores = torch.get_num_threads()
        torch.set_num_threads(min(MOST, cores) if sleeps and cores > 2 else 1)
