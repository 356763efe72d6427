"""Pose estimators and the choice of a person."""
