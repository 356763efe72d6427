#!/usr/bin/env bash
# Lint and tests, from a bare clone; arguments go to pytest:
#
#   bash command_test.sh                      everything
#   bash command_test.sh tests/models -k pose
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null
. scripts/environment.sh

python="$(prepare_environment requirements.txt requirements-dev.txt requirements-prepare.txt \
    requirements-mediapipe.txt)"

export OMP_NUM_THREADS=1  # tiny tensors: more threads only wait for each other
"$python" -m ruff check .
exec "$python" -m pytest -n 2 --dist worksteal "$@"  # -n 0: in one process, for a debugger
