"""Images and latent variables drawn from a model."""
