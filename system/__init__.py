"""What a run needs of the machine: errors, locks, processes, signals. Imports nothing of ours."""
