"""The backends: one contract (base.py) and its implementations. Knows nothing of text, sequences or files."""
