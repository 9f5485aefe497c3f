"""Turn a chunk's bytes into outcomes: decode the images and predict full batches."""
