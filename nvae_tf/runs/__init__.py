"""Directories of runs, and the models that are loaded from them."""
