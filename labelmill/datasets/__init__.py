"""Datasets: add versions from folders, archives, manifests and IDX files; show and remove them.

`adding` is where to begin: it reads sources (`sources`), decodes (`examining`), merges with what is known
(`merging`), and stores payloads (`packing`), manifest and row.
"""
