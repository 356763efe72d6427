"""Tracks of guidance: which file belongs to which frame, reading, fitting, flipping, drawing."""
