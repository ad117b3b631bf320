"""Thousands of damaged inputs, each of which must end in one clear line, or be of no harm."""
