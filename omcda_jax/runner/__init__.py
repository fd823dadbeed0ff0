"""Runs, comparisons and reports: the layer around the library that knows both the algorithms and the machinery."""
