"""The migrations, one per file, numbered in their order."""
