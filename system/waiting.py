"""How threads wait for each other on a CPU: they spin for a millisecond at most, then sleep.

Imported before torch: an OpenMP runtime reads the environment once, when it is loaded. By itself it spins for
many milliseconds at the end of a parallel loop. Beside another busy process a core then burns its time slices
waiting for a thread that does not run, and a step takes many times as long. A user's own policy is kept.
benchmarks/waiting.py measures it.

Every script imports this first of all, so here too begins that Ctrl-C ends it without a traceback.
"""

import os
import sys

from system.stop_request import end_quietly_until_run

POLICY = {
    "GOMP_SPINCOUNT": "1500",  # GNU's (PyTorch for Linux): spins, some 50 microseconds; its default: 300,000
    "KMP_BLOCKTIME": "1",  # Intel's and LLVM's (macOS, Windows, conda): milliseconds; their default: 200
}
CHOSEN_BY_USER = {*POLICY, "OMP_WAIT_POLICY", "KMP_LIBRARY"}

if "torch" not in sys.modules and CHOSEN_BY_USER.isdisjoint(os.environ):
    os.environ.update(POLICY)

end_quietly_until_run()
