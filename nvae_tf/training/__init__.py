"""What training adds to a model: objective, regularisation, optimiser and averages."""
