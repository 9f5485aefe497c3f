"""Turn the sources that a user names into a stream of images, any number of them in constant memory.

`readers` finds the reader of each source: `files` for files and folders, `patterns` for globs, `archives` for
ZIP and TAR, `idx` for MNIST's files, `manifest` for lists of images, `remote` for URLs. The next step is
`producer.submit`.
"""

from producer.sources.image import SourceImage, SourceImages
from producer.sources.readers import Sources, local_source, no_images

__all__ = ["SourceImage", "SourceImages", "Sources", "local_source", "no_images"]
