"""Batch normalization done right: the norm on arrays, networks that train with it, and tools for trained models."""
from evenkeel._core import BackendError, Error, FormatError, IoError, UsageError, __version__

__all__ = ["BackendError", "Error", "FormatError", "IoError", "UsageError", "__version__"]
