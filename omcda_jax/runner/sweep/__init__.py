"""Sweeps: many runs as one list of commands, and the engines that run them."""
