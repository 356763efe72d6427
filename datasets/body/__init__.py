"""A dancer's body, by key points: its proportions, its dance put on another one, its movement made smooth."""
