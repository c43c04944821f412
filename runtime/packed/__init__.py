"""The launcher that goes into a packed file: main.py becomes its `__main__.py`. Standard library only."""
