"""Predictions over HTTP, from a run's folder or from an exported bundle."""
