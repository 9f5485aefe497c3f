"""Where bytes are kept: the object store, payloads, lists of images, and model files."""
