"""The producer: read sources, submit and follow jobs, retry failed images, export predictions."""
