"""Everything that training adds to a model: objective, regularisation, optimiser, averages."""
