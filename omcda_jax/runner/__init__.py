"""Runs, comparisons and reports: what stands around the library and knows algorithms and machinery alike."""
