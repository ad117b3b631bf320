"""Transports that carry the client's requests, a module for each protocol."""
