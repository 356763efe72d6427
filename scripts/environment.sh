# Sourced by the command_*.sh launchers. Bash 3.2 (macOS) is enough.

# Prints a command that starts Python 3.11 or newer: the active environment's, else the first one found.
find_python() {
    local candidates=(python3 python python3.13 python3.12 python3.11) candidate
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        candidates=(python)
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed; none was found as: ${candidates[*]}." >&2
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "The active environment (${VIRTUAL_ENV:-${CONDA_PREFIX:-}}) has an older one: deactivate it," \
            "or activate one with Python 3.11." >&2
    else
        echo "Install it (https://www.python.org/downloads/, or your system's packages) and run this again." >&2
    fi
    return 2
}

# Prints the interpreter to use, with the requirement files given as arguments installed.
prepare_environment() {
    local python
    python="$(find_python)" || return
    "$python" scripts/set_up.py "$@"
}

# Runs a command and, where it fails, ends with its exit code. Bash would wait for its end before it heard a
# signal: so it runs beside, in a group of its own that Ctrl-C does not reach twice.
run() {
    local child code=0 signal
    set -m
    "$@" &
    child=$!
    set +m
    for signal in INT TERM HUP; do
        trap "kill -$signal $child 2>/dev/null || :" "$signal"
    done
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do  # a signal ended the waiting
        code=0
        wait "$child" || code=$?
    done
    trap - INT TERM HUP
    [ "$code" -eq 0 ] || exit "$code"
}
