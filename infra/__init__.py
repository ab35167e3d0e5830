"""Machines: what they are, what they cost, how they come and go. Imports neither `orchestrator` nor `trainer`."""
