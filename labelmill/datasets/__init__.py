"""Datasets: add versions from folders, archives, manifests and IDX files; show and remove them.

Start reading at `adding`: it reads the sources (`sources`), decodes the images (`decoding`), merges them
with the previous version (`merging`), and stores the payloads, the manifest and the row.
"""
