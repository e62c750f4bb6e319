"""Completing annotations with a model."""
