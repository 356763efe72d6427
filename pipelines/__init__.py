"""Sampling with a trained model, and drawing what went in and what came out."""
