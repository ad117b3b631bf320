"""Training adds to a model: objective, regularisation, optimiser and averages."""
