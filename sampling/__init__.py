"""Sampling with trained models, as jobs: what the scripts and the web page share."""
