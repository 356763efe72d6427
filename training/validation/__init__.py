"""Validation: fixed clips, guidance gaps, what is drawn and said."""
