"""Measurements: one command prints one table."""
