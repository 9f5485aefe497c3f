"""Compile models for the runtimes other than Keras."""
