"""The scaling benchmark by its first name: `python benchmarks/step_scaling.py --json FILE`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

from benchmarks.step.scaling import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
