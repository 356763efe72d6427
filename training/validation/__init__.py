"""Validation: fixed clips, what is measured, drawn and said of them."""

from evaluation.guidance_gaps import evaluate_guidance_gaps

__all__ = ["evaluate_guidance_gaps"]
