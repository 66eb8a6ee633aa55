"""Measurements of speed and quality, each a command that prints its figures."""
