"""Sweeps: many runs as one list of commands, and what works it off."""
