"""Music makes the dance: rows of music features become a track of key points (EDGE, arXiv:2211.10658)."""
