"""The trainer of pose tracks from music: its settings, its data, its task and its validation."""
