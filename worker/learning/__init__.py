"""Retrain the model: load the data, train, evaluate, register and promote."""
