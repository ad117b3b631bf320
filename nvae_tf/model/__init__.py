"""The model: towers, latent groups, layers and distributions, and its form for inference."""
