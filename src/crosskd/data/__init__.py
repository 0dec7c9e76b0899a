"""Data: from any file to examples, and from examples to batches."""
