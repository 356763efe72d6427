"""Reading and writing of video and sound, by presentation times."""
