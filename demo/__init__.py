"""The demo's drawn dancers and songs, and the small base model that the demo starts from."""
