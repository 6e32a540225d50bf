"""Batch normalization done right: the norm on arrays, networks that train with it, and tools for trained models."""
from evenkeel._core import BackendError, Error, FormatError, IoError, UsageError, __version__
from evenkeel._norm import Gradients, Moments, Saved, batch_norm, batch_norm_backward, batch_norm_forward, merge, moments
from evenkeel.network import History, Network, zoo
from evenkeel.tools import convert, diff, explain, fold, inspect, recalibrate

__all__ = [
    "BackendError", "Error", "FormatError", "Gradients", "IoError", "Moments", "Saved", "UsageError", "__version__", "batch_norm",
    "batch_norm_backward", "batch_norm_forward", "merge", "moments",
    "History", "Network", "convert", "diff", "explain", "fold", "inspect", "recalibrate", "zoo"
]
