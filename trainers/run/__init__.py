"""One training run: its state, its step, and what watches and saves them."""
