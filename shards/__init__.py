"""Data folders packed into few large files: written, checked, unpacked, and read as the folder is."""
