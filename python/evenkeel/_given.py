"""What functions are given, in the forms that the extension takes: numbers per channel, state dicts, files that must be there."""
from __future__ import annotations

import contextlib
import errno
import math
import os
from typing import Any, Dict, Iterator, List, Mapping

from evenkeel import _core


class MissingFileError(FileNotFoundError, _core.UsageError):
    """A file that is to be read is not there: errno and filename are those of FileNotFoundError."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def naming_missing(*paths: Any) -> Iterator[None]:
    """A UsageError about one of these paths, which does not exist, becomes a MissingFileError."""
    try:
        yield
    except _core.UsageError as error:
        for path in paths:
            if isinstance(path, str) and ("." in path or os.sep in path) and path in str(error) and not os.path.lexists(path):
                raise MissingFileError(errno.ENOENT, str(error), path) from None
        raise


def plain(x: Any) -> Any:
    """A tensor that autograd watches, without that; an array of what stands in lists."""
    if isinstance(x, (list, tuple)):
        import numpy
        try:
            return numpy.asarray(x)
        except (TypeError, ValueError) as error:
            raise _core.UsageError(f"found lists that make no array ({error}); expected rows of the same length, of numbers") from None
    if str(getattr(x, "dtype", "")) == "torch.bool" and x.device.type == "cpu":
        return x.numpy()  # DLPack of older versions has no booleans
    return x.detach() if getattr(x, "requires_grad", False) else x


def _numbers(name: str, value: Any) -> List[float]:
    """One number, or one per channel: a number, a list, an array or a tensor of them, or a text "0.485,0.456,0.406"."""
    rows = value
    if isinstance(rows, str):
        rows = rows.split(",")
    elif hasattr(rows, "reshape") and hasattr(rows, "tolist"):  # [3], [3, 1, 1], or a single value
        rows = rows.reshape(-1).tolist()
    elif not isinstance(rows, (list, tuple)):
        rows = [rows]
    try:
        if any(isinstance(number, bool) for number in rows):
            raise TypeError
        numbers = [float(number) for number in rows]
    except (TypeError, ValueError, RuntimeError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise _core.UsageError(f"{name}: found {value!r}, expected a finite number, or one for each channel, such as (0.485, 0.456, 0.406)")
    return numbers


def with_numbers(options: Mapping[str, Any]) -> Dict[str, Any]:
    """The options, mean and std among them as lists of numbers."""
    made = dict(options)
    for name in ("mean", "std"):
        if made.get(name) is not None:
            made[name] = _numbers(name, made[name])
    return made


_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema")


def _way_to_state(checkpoint: Mapping[Any, Any]) -> str:
    """Where a state dict stands among other things, such as "['state_dict']"; "" where there is none."""
    for key in sorted(checkpoint, key=lambda key: _USUAL_KEYS.index(key) if key in _USUAL_KEYS else len(_USUAL_KEYS)):
        value = checkpoint[key]
        if isinstance(value, Mapping) and value:
            if all(isinstance(name, str) and hasattr(tensor, "shape") for name, tensor in value.items()):
                return f"[{key!r}]"
            inside = _way_to_state(value)
            if inside:
                return f"[{key!r}]{inside}"
        elif callable(getattr(value, "state_dict", None)) and callable(getattr(value, "parameters", None)):
            return f"[{key!r}].state_dict()"
    return ""


def state_of(name: str, state: Any) -> Dict[str, Any]:
    """A dict of names and arrays. Throws UsageError for what is none, and for a checkpoint, which has one inside."""
    if not isinstance(state, Mapping):
        hint = f": give {name}.state_dict()" if callable(getattr(state, "state_dict", None)) else ""
        raise _core.UsageError(f"{name}: found {_shown(state)}, expected a state dict, names and arrays{hint}")
    way = _way_to_state(state)
    if way:
        raise _core.UsageError(f"{name}: found a checkpoint, whose state dict is one of several things in it: give checkpoint{way}")
    return {key: plain(value) for key, value in state.items()}


def _shown(value: Any) -> str:
    return "None" if value is None else f"{value!r}" if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
