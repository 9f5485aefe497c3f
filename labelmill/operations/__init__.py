"""Run a deployment: check it, measure it, migrate it, and remove what is old."""
