"""Music features of a sound track."""
