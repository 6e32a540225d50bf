"""Tools for trained models: on files, and on state dicts (a dict of names and arrays). `evenkeel.inspect` and the like."""
from __future__ import annotations

import collections
import copy
import json
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union, overload

from evenkeel import _core
from evenkeel._given import naming_missing, plain as _plain, state_of, with_numbers
from evenkeel.network import _path

if TYPE_CHECKING:  # importing evenkeel does not take the time of importing NumPy
    import numpy as np
    Array = np.ndarray[Any, Any]

Path = Union[str, "os.PathLike[str]"]
Model = Union[Path, Mapping[str, Any]]


class Report:
    """What a tool found: print() shows its table, to_dict() is what the program prints with --json, and the keys of that are attributes."""

    def __init__(self, answer: Dict[str, Any], frames: int = 3):
        self._facts = json.loads(answer["json"])
        self._text: str = answer["text"]
        self.warnings: List[str] = list(answer["warnings"])
        for warning in self.warnings:
            warnings.warn(warning, stacklevel=frames)  # of the caller of the tool

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("_facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__} has no attribute '{name}'; it has {', '.join(facts)}")

    def to_dict(self) -> Dict[str, Any]:
        """A copy of all that was found, of plain Python types."""
        facts: Dict[str, Any] = json.loads(json.dumps(self._facts))
        return facts

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._facts.get('model', self._facts.get('a', 'a model'))}>"


class Finding:
    """A finding of the lint: code ("EK101", which explain() explains), severity ("info", "warning", "error"), norm (None: the model as a whole),
    reason, channels (how many are concerned; 0: the norm as such), remedy."""

    def __init__(self, facts: Dict[str, Any]):
        self.code: str = facts["code"]
        self.severity: str = facts["severity"]
        self.norm: Optional[str] = facts["norm"]
        self.reason: str = facts["reason"]
        self.channels: int = facts["channels"]
        self.remedy: str = facts["remedy"]

    def __repr__(self) -> str:
        return f"<{self.severity} {self.code} {self.norm or 'the model'}: {self.reason}>"


class Norm:
    """A batch norm: name, channels, eps, new_batch_weight (PyTorch's momentum; None: not in the file), conventions in words, num_batches_tracked,
    training_mode, fed_by, feeds; gamma, beta, running_mean and running_var as float64 [channels], empty where the norm has none."""

    def __init__(self, facts: Dict[str, Any], values: Dict[str, Array]):
        self.name: str = facts["name"]
        self.channels: int = facts["channels"]
        self.eps: float = facts["eps"]
        self.new_batch_weight: Optional[float] = facts["new_batch_weight"]
        self.conventions: str = facts["conventions"]
        self.num_batches_tracked: Optional[int] = facts["num_batches_tracked"]
        self.training_mode: bool = facts["training_mode"]
        self.fed_by: List[str] = facts["fed_by"]
        self.feeds: List[str] = facts["feeds"]
        self.gamma: Array = values["gamma"]
        self.beta: Array = values["beta"]
        self.running_mean: Array = values["running_mean"]
        self.running_var: Array = values["running_var"]

    def __repr__(self) -> str:
        return f"<Norm {self.name}: {self.channels} channels>"


class ModelReport(Report):
    """What inspect() found: format, norms (of Norm), findings (of Finding), totals, notes, data."""

    def __init__(self, answer: Dict[str, Any]):
        super().__init__(answer, frames=4)
        self.norms: List[Norm] = [Norm(f, v) for f, v in zip(self._facts["norms"], answer["values"])]
        self.findings: List[Finding] = [Finding(f) for f in self._facts["findings"]]

    def _found(self, name: Any) -> Optional[Norm]:
        plain = name[_core.wrapped_by([name]):] if isinstance(name, str) else name
        norms = {norm.name: norm for norm in self.norms}
        return norms.get(name, norms.get(plain))

    def __getitem__(self, name: str) -> Norm:
        """The norm of that name; "module." and the like in front of it, as in the state dict that was given, may be left out or not."""
        norm = self._found(name)
        if norm is None:
            raise KeyError(f"there is no norm {name!r}; there are {', '.join(self) or 'none'}")
        return norm

    def __contains__(self, name: object) -> bool:
        return self._found(name) is not None

    def __iter__(self) -> Iterator[str]:
        """The names of the norms; the norms themselves are `norms`."""
        return iter(norm.name for norm in self.norms)

    def __len__(self) -> int:
        return len(self.norms)

    def __bool__(self) -> bool:  # a report of no norms is one
        return True


class StateDict(Dict[str, Any]):
    """Arrays by name, or tensors where tensors were given; .report says how they came about. Pickled it is an OrderedDict, as PyTorch's state
    dicts are, which is read without evenkeel."""
    report: Report

    def __reduce__(self) -> Tuple[Any, ...]:
        return collections.OrderedDict, (), None, None, iter(self.items())

    def _with(self, items: Mapping[str, Any]) -> StateDict:
        made = StateDict(items)
        if hasattr(self, "report"):
            made.report = self.report
        return made

    def __copy__(self) -> StateDict:
        return self._with(self)

    def __deepcopy__(self, memo: Dict[int, Any]) -> StateDict:
        return self._with({name: copy.deepcopy(value, memo) for name, value in self.items()})


def _model(model: Model, name: str = "model") -> Any:
    if isinstance(model, Mapping):
        return state_of(name, model)
    if hasattr(model, "state_dict"):
        raise _core.UsageError(f"{name}: found a {type(model).__name__}, expected a path or a state dict: give {name}.state_dict()")
    return _path(name, model)


def _data(data: Any) -> Any:
    """None, a name, or (x, y); x alone is (x, None)."""
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, os.PathLike):
        return os.fspath(data)
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise _core.UsageError("data: expected examples x, or the examples and their labels, as (x, y)")
        return _plain(data[0]), _plain(data[1])
    return _plain(data), None


def _out(out: Optional[Path], model: Model) -> str:
    if out is not None and isinstance(model, Mapping):
        raise _core.UsageError("out: a state dict in memory is given back, not written; leave it out")
    return "" if out is None else os.fspath(out)


def _with_names_of(state: Mapping[str, Array], model: Mapping[str, Any]) -> Dict[str, Array]:
    """The arrays under the names and in the order that `model` has for them: "module.bn1.weight"."""
    rest = dict(state)
    named: Dict[str, Array] = {}
    words = _core.wrappers()
    for name in model:
        own, wrapped = name, True
        while own not in rest and wrapped:
            word = next((word for word in words if own.startswith(word)), "")
            own, wrapped = own[len(word):], bool(word)
        if own in rest:
            named[name] = rest.pop(own)
    named.update((name, value) for name, value in rest.items() if not name.endswith("num_batches_tracked"))
    return named


def _torch_of(value: Any) -> Any:
    """PyTorch's module where `value` is a tensor of it, else None."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, torch.Tensor) else None


def _in_kind_of(name: str, value: Array, given: Any) -> Any:
    """An array as what `given` is, a tensor or an array, and in its type; where the values are those of `given`, a copy of it."""
    import numpy as np
    torch = _torch_of(given)
    old = np.asarray(_plain(given).float() if torch is not None and given.is_floating_point() else _plain(given))
    if old.shape == value.shape and np.array_equal(old.astype(value.dtype), value, equal_nan=value.dtype.kind == "f"):
        return given.detach().clone() if torch is not None else np.array(given)
    stored = torch.from_numpy(value).to(given.dtype) if torch is not None else value.astype(old.dtype)
    if value.dtype.kind == "f":
        lost = np.isfinite(value) & ~np.isfinite(np.asarray(stored.double() if torch is not None else stored))
        if lost.any():
            raise _core.Error(f"'{name}' would get the value {value[lost].flat[0]:.6g}, which {given.dtype} cannot hold; give the state dict in float32")
    return stored


def _tensors_if(state: Mapping[str, Array], model: Mapping[str, Any]) -> Dict[str, Any]:
    """The arrays as tensors where `model` holds tensors."""
    torch = next((found for found in map(_torch_of, model.values()) if found is not None), None)
    return {name: value if torch is None else torch.from_numpy(value) for name, value in state.items()}


def _norms_of(model: Model, name: str = "model") -> Any:
    """As _model(). The state dict of a single norm has bare names; it is the one that is then called "norm"."""
    given = _model(model, name)
    if isinstance(given, dict) and "running_mean" in given and not any("." in str(key) for key in given):
        return {f"norm.{key}": value for key, value in given.items()}
    return given


def inspect(model: Model, data: Any = None, **options: Any) -> ModelReport:
    """Every batch norm of a model, and what is suspicious about it.

    Args:
        model: an ONNX, safetensors or Keras (.h5) file, the folder of a run, or a state dict; that of a norm alone is the one
            called "norm".
        data: also run the model on a data set by name, or on (x, y) or x: how far are the stored statistics from the actual ones?
        options: of `evenkeel inspect`: architecture="resnet20" (for a state dict with data), mean, std, corrupt, split, ...
    """
    given, inputs = _norms_of(model), _data(data)
    with naming_missing(given, inputs, options.get("architecture")):
        return ModelReport(_core.inspect(given, inputs, with_numbers(options)))


@overload
def fold(model: Path, out: Optional[Path] = None, *, data: Any = None, **options: Any) -> Report: ...


@overload
def fold(model: Mapping[str, Any], out: None = None, *, data: Any = None, **options: Any) -> StateDict: ...


def fold(model: Model, out: Optional[Path] = None, *, data: Any = None, **options: Any) -> Union[Report, StateDict]:
    """Folds batch norms into their neighbours where that is exact, and proves it by running the model before and after.

    Args:
        model: an ONNX file, a model of evenkeel, or weights with architecture="resnet20": a file or a state dict.
        out: the ONNX file to write; None: nothing is written.
        data: inputs of the proof, as for inspect(); None: seeded random ones.
        options: of `evenkeel fold`: verify (how many inputs; 0: no proof), tolerance, force_inference, architecture, ...

    Returns the report: folded, left (with reasons) and proof. For a state dict: the tensors of the folded network by name, conv1.weight and
    conv1.bias and no norms, with the report as `.report`; tensors where tensors were given, float32, as they were proved. Raises evenkeel.Error, and writes nothing, where the outputs differ.
    """
    given, inputs = _model(model), _data(data)
    with naming_missing(given, inputs, options.get("architecture")):
        answer = _core.fold(given, inputs, _out(out, model), with_numbers(options))
    report = Report(answer)
    if answer["state"] is None:
        return report
    state = StateDict(_tensors_if(answer["state"], model))  # type: ignore[arg-type]
    state.report = report
    return state


@overload
def recalibrate(model: Path, data: Any = None, out: Optional[Path] = None, *, test: Any = None, **options: Any) -> Report: ...


@overload
def recalibrate(model: Mapping[str, Any], data: Any = None, out: None = None, *, test: Any = None, **options: Any) -> StateDict: ...


def recalibrate(model: Model, data: Any = None, out: Optional[Path] = None, *, test: Any = None,
                **options: Any) -> Union[Report, StateDict]:
    """Makes the running statistics anew from data, and says what that does to the accuracy.

    Args:
        model: a model of evenkeel, an ONNX file, or weights with architecture="resnet20": a file or a state dict.
        data: a data set by name, or (x, y), or x alone: x [N, C, H, W] or [N, F]. None: what the model was trained on.
        out: the file to write, in the format of the model; None: nothing is written.
        test: (x, y) or a name: what the result is judged by. None: the test set of the data; (x, y) itself.
        options: of `evenkeel recalibrate`: running_statistics="population_one_pass", batch_size, blend, augment, corrupt, mean, std,
            adapt="gamma-beta", undo=True, ...

    Returns the report: norms (how far each moved), before, after. For a state dict: a new one with the new running statistics, under the same
    names, with the report as `.report`: tensors where tensors were given, in their types; what did not change is a copy.
    """
    given, inputs, judges = _model(model), _data(data), _data(test)
    with naming_missing(given, inputs, judges, options.get("architecture")):
        answer = _core.recalibrate(given, inputs, judges, _out(out, model), with_numbers(options))
    report = Report(answer)
    if answer["state"] is None:
        return report
    named = _with_names_of(answer["state"], given)
    state = StateDict({name: _in_kind_of(name, value, model[name]) if name in model else value  # type: ignore[index, operator]
                       for name, value in named.items()})
    state.report = report
    return state


def diff(a: Model, b: Model, *, data: Any = None, random: int = 0, **options: Any) -> Report:
    """What differs between the norms of two models, files or state dicts, of the same or of different formats.

    Args:
        data, random: also compare their outputs, on data as for inspect() or on so many random inputs.
        options: of `evenkeel diff`: architecture, tolerance, ...

    Returns a report: norms (the most changed first, with effect, gamma, beta, ...), only_in_a, only_in_b, outputs,
    outputs_only_in_a, outputs_only_in_b.
    """
    first, second, inputs = _norms_of(a, "a"), _norms_of(b, "b"), _data(data)
    with naming_missing(first, second, inputs, options.get("architecture")):
        return Report(_core.diff(first, second, inputs, int(random), with_numbers(options)))


def convert(model: Path, out: Path, **options: Any) -> Dict[str, Any]:
    """Writes a model file as what the extension of `out` says: .onnx or .safetensors. Returns from, to, architecture, tensors (how many) and
    left_out. Options: of `evenkeel convert`: architecture, input, classes, mean, std, training, no_standardization."""
    if isinstance(model, Mapping):
        raise _core.UsageError("model: found a state dict, expected the path of a model file: convert() writes a file as another; the network of a "
                               "state dict is Network(...).load_state_dict(state), and its save() writes files")
    given = _path("model", model)
    with naming_missing(given, options.get("architecture")):
        done: Dict[str, Any] = _core.convert(given, _path("out", out), with_numbers(options))
    return done


@overload
def explain(code: str) -> Dict[str, str]: ...


@overload
def explain(code: None = None) -> List[Dict[str, str]]: ...


def explain(code: Optional[str] = None) -> Union[Dict[str, str], List[Dict[str, str]]]:
    """What a finding means: code, severity, title, explanation, remedy. Without a code: all of them."""
    if code is not None and (not isinstance(code, str) or not code):
        raise _core.UsageError(f"explain(): found {code!r}, expected the code of a finding, such as 'EK101', or nothing for all of them")
    rules: List[Dict[str, str]] = _core.explain(code or "")
    return rules if code is None else rules[0]
