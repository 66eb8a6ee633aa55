"""Training the generalist: `python -m experiments.generalist`."""
