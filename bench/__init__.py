"""Measurements: synthetic models, the benchmark table, and comparisons with peers."""
