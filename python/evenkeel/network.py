"""Networks of evenkeel: made from a zoo name or a TOML file, trained on arrays or data sets by name, asked, saved."""
from __future__ import annotations

import numbers
import operator
import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from evenkeel import _core
from evenkeel._given import naming_missing, plain as _plain, state_of, with_numbers

if TYPE_CHECKING:  # importing evenkeel does not take the time of importing NumPy
    import numpy as np
    Array = np.ndarray[Any, Any]

Path = Union[str, "os.PathLike[str]"]
Data = Tuple[Any, Any]


def _path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise _core.UsageError(f"{name}: found {value!r} of type {type(value).__name__}, expected a path or a name")
    return os.fspath(value)


def _whole(value: Any, name: str, least: int, most: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if not least <= whole <= most:
        raise _core.UsageError(f"{name}: found {value!r}, expected a whole number from {least} to {most}")
    return whole


def _shape(input_shape: Any) -> List[int]:
    try:
        shape = [operator.index(extent) for extent in input_shape]
    except TypeError:
        shape = []
    if len(shape) not in (1, 3) or not all(0 < extent < 2 ** 31 for extent in shape):
        raise _core.UsageError(f"input_shape: found {input_shape!r}, expected (features,) or (channels, height, width), each at least 1")
    return shape


def _threads(threads: Optional[int]) -> int:
    """0 is all cores."""
    if threads is None:
        return 0
    try:
        whole = operator.index(threads)
    except TypeError:
        raise _core.UsageError(f"threads: found {threads!r}, expected a whole number, 0 (all cores) to 1024") from None
    return max(-2 ** 62, min(whole, 2 ** 62))  # what is refused is said where all threads are looked at


def _batch(batch_size: int) -> int:
    return min(_whole(batch_size, "batch_size", 1, 2 ** 63 - 1), 2 ** 62)


def _restored(cls: Any, name: str, content: Optional[bytes], architecture: str, trained: bool) -> Any:
    """A copy of a network, of what __reduce__() gave."""
    network = cls.__new__(cls)
    if content is None:
        network._core = _core.Network(architecture, None, 0, 1)
        return network
    with tempfile.TemporaryDirectory(prefix="evenkeel-") as scratch:
        path = os.path.join(scratch, name)
        with open(path, "wb") as file:
            file.write(content)
        network._core = _core.Network.restored(path, architecture, trained)
    return network


def _pair(data: Optional[Data], name: str) -> Optional[Data]:
    if data is None:
        return None
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise _core.UsageError(f"{name}: expected the examples and their labels, as (x, y)")
    return _plain(data[0]), _plain(data[1])


def _rows(array: Any) -> Any:
    """What has a shape and can be indexed by an array."""
    import numpy
    return array if hasattr(array, "shape") and not isinstance(array, memoryview) else numpy.asarray(array)


def _weighted(x: Any, y: Any, weight: Any) -> Tuple[Any, ...]:
    """(x, y, weights), as floats above 0: examples of weight 0 are left out."""
    if weight is None:
        return x, y
    import numpy
    if isinstance(weight, (str, bytes, os.PathLike)):
        raise _core.UsageError(f"weight: found {weight!r}, the name of a column; with arrays expected an array [N], a number per example")
    weight = _plain(weight)
    if str(getattr(weight, "dtype", "")) == "torch.bfloat16":
        weight = weight.float()
    masked: Any = numpy.ma
    if masked.is_masked(weight):
        raise _core.UsageError("weight: found a masked array, whose mask would be lost; give weight.filled(0) where what is masked does not count")
    weights = numpy.asarray(weight)
    x, y = _rows(x), _rows(y)
    n = x.shape[0] if len(x.shape) else 0
    if weights.shape != (n,) or weights.dtype.kind not in "buif":
        raise _core.UsageError(f"weight: found {weights.dtype} {list(weights.shape)}, expected [{n}], a number per example")
    weights = weights.astype(numpy.float64)
    bad = numpy.flatnonzero(~((weights >= 0) & (weights <= numpy.finfo(numpy.float32).max)))  # and what is not a number
    if bad.size:
        raise _core.UsageError(f"weight: found {weights[bad[0]]} at {bad[0]}, expected a finite number, not negative")
    weights = weights.astype(numpy.float32)
    kept = numpy.flatnonzero(weights)
    if n and not kept.size:
        raise _core.UsageError(f"weight: all {n} weights are 0, expected some above")
    if kept.size < n and tuple(y.shape[:1]) == (n,):  # otherwise what is wrong with y is said where it is looked at
        x, y, weights = x[kept], y[kept], weights[kept]
    return x, y, weights


def _refuse_reading(function: str, options: Dict[str, Any], names: Sequence[str]) -> None:
    """Options of reading files, which do nothing to arrays."""
    for name in names:
        if options.get(name) is not None:
            raise _core.UsageError(f"{function}: {name} is for data sets by name, which are read from files; leave it out with arrays")


_KERAS = {"validation_split": "validation=0.1, the share", "validation_data": "validation=(x, y)", "sample_weight": "weight, an array [N]"}


def _refuse_keras(function: str, options: Dict[str, Any]) -> None:
    for name in _KERAS.keys() & options.keys():
        raise _core.UsageError(f"{function} has no option {name!r}; give {_KERAS[name]}")


class History:
    """What a training run did, epoch by epoch.

    Attributes:
        epochs: a dict per epoch: epoch, loss, accuracy (of training), validation_loss, validation_accuracy, test_loss, test_accuracy (None
            without such data), seconds, examples_per_s, refused_batches.
        steps, parameters: counts.
        best_epoch: the number of the epoch that was best on the validation data; None where no epoch was judged: without `keep`, `patience`
            and schedule="plateau".
        stopped_early: whether `patience` ended the run.
        seconds: of the run.
        notes: what was said on the way, a sentence each.
        run: the folder of the run; None where it was a temporary one.

    history.loss and the like are lists with a value per epoch.
    """

    def __init__(self, facts: Dict[str, Any], run: Optional[str]):
        self.epochs: List[Dict[str, Any]] = list(facts["epochs"])
        self.steps: int = facts["steps"]
        self.best_epoch: Optional[int] = facts["best_epoch"] or None
        self.stopped_early: bool = facts["stopped_early"]
        self.parameters: int = facts["parameters"]
        self.seconds: float = facts["seconds"]
        self.notes: List[str] = list(facts["notes"])
        self.run = run

    def _column(self, key: str) -> List[Any]:
        return [epoch[key] for epoch in self.epochs]

    @property
    def loss(self) -> List[float]:
        return self._column("loss")

    @property
    def accuracy(self) -> List[float]:
        return self._column("accuracy")

    @property
    def validation_loss(self) -> List[Optional[float]]:
        return self._column("validation_loss")

    @property
    def validation_accuracy(self) -> List[Optional[float]]:
        return self._column("validation_accuracy")

    @property
    def test_loss(self) -> List[Optional[float]]:
        return self._column("test_loss")

    @property
    def test_accuracy(self) -> List[Optional[float]]:
        return self._column("test_accuracy")

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        last = f", loss {self.loss[-1]:.4f}, accuracy {self.accuracy[-1]:.4f}" if self.epochs else ""
        return f"<History: {len(self.epochs)} epochs, {self.steps} steps{last}>"


class Network:
    """A network with batch norm.

    Args:
        architecture: a name of `evenkeel.zoo()` ("mlp", "cnn", "resnet20", ...) or the path of a TOML file.
        input_shape: of one example: (channels, height, width), or (features,). With `classes`, or neither: the network is then made when
            fit() sees its data.
        classes: how many.
        seed: of the initial values. fit() of a network that was neither trained nor loaded makes its own, from its own seed.

    Examples are arrays whose first extent counts them, of NumPy, PyTorch or whoever speaks DLPack or the buffer protocol: images [N, H, W]
    or [N, C, H, W], as whole numbers 0..255 or floats 0..1, and tables [N, F]. They are standardized by what fit() found in its data.
    """

    def __init__(self, architecture: Path, *, input_shape: Optional[Sequence[int]] = None, classes: Optional[int] = None,
                 seed: int = 1):
        shape = None if input_shape is None else _shape(input_shape)
        count = 0 if classes is None else _whole(classes, "classes", 1, 2 ** 31 - 1)
        self._core = _core.Network(_path("architecture", architecture), shape, count, _whole(seed, "seed", 0, 2 ** 64 - 1))

    @classmethod
    def load(cls, path: Path, architecture: Optional[Path] = None, **options: Any) -> "Network":
        """The network of a model file or of the folder of a run.

        Args:
            path: a model of evenkeel (.safetensors, or the folder of a run), an ONNX file (to be evaluated and asked, not trained), or a
                safetensors file of a PyTorch state dict, which needs `architecture`. Pickles are refused; the message says how to convert.
            architecture: of a state dict: a zoo name or a TOML file.
            options: of a state dict: `input` (3, 32, 32), `classes`, and `mean` and `std` of pixels / 255, a number per
                channel or one for all: a number, a list, an array or a tensor.
        """
        network = cls.__new__(cls)
        if architecture is not None:
            options["architecture"] = _path("architecture", architecture)
        with naming_missing(_path("path", path), options.get("architecture")):
            network._core = _core.Network.load(_path("path", path), with_numbers(options))
        return network

    def fit(self, x: Any, y: Any = None, *, weight: Any = None, validation: Any = None, test: Optional[Data] = None, epochs: int = 3,
            batch_size: int = 128, optimizer: str = "adamw", learning_rate: float = 3e-3, seed: int = 1,
            threads: Optional[int] = None, out: Optional[Path] = None,
            on_epoch: Optional[Callable[[Dict[str, Any]], None]] = None, **options: Any) -> History:
        """Trains, from initial values or, where the network was trained or loaded, from those that it has.

        Args:
            x: examples; or, without y, a data set by name or path as `evenkeel train --data` takes it ("fashion-mnist", "table.csv").
            y: labels [N], whole numbers from 0 or booleans.
            weight: of the examples, [N], not negative: how often each counts, as Keras' sample_weight; those of 0 are left out. With a table
                by name the column that holds them.
            validation, test: (x, y), evaluated after every epoch; their examples count the same. `validation` may be a share of the
                training set, as 0.1; with a data set by name it is that.
            out: the folder of the run, with log, checkpoints and model (`evenkeel report` draws it). None: a temporary one, removed at the end.
            on_epoch: called after every epoch with its dict (see History). What it raises ends the run and is raised here. The values are
                fit()'s until it ends: inside, the network can be printed, but not asked or saved.
            options: any option of `evenkeel train`, with _ for -: schedule="cosine", augment="crop4,flip", norm="group",
                freeze_norm=["bn1", "layer1.*"], running_statistics="population", ... With validation data patience=5 stops after five epochs
                in which their loss was no better than before (by more than min_delta=0), and keep="best-loss" (or "best-accuracy") gives
                the network the values of the best epoch in the end, as Keras' EarlyStopping(patience=5, restore_best_weights=True).

        Ctrl-C raises KeyboardInterrupt after the step in work; the network then has the values of that step, or with `keep` those of the best
        epoch so far. Other threads of Python go on
        while it trains. Raises evenkeel.UsageError where data and options do not fit, evenkeel.Error where a value is not finite: the
        network is then as it was, or with `keep` that of the best epoch.
        """
        if on_epoch is not None and not callable(on_epoch):
            raise _core.UsageError(f"on_epoch: found {on_epoch!r}, expected a function of the dict of an epoch")
        if out is not None and not _path("out", out):
            raise _core.UsageError("out: found '', expected the folder of the run, or None for a temporary one")
        _refuse_keras("fit()", options)
        options.update(epochs=epochs, batch_size=batch_size, optimizer=optimizer, learning_rate=learning_rate, seed=seed,
                       threads=threads)
        if isinstance(x, (str, os.PathLike)):
            if y is not None:
                raise _core.UsageError("fit(): a data set by name has its labels; leave y out")
            if test is not None:
                raise _core.UsageError("fit(): a data set by name has its test set; leave test out")
            data: Any = os.fspath(x)
            options.update(validation=validation, weight=weight)
            validation = None
        else:
            if y is None:
                raise _core.UsageError("fit(): y is missing: the label of every example")
            _refuse_reading("fit()", options, ("label", "resize", "layout"))
            data = _weighted(_plain(x), _plain(y), weight)
            if isinstance(validation, numbers.Real):
                options["validation"] = validation
                validation = None
            validation = _pair(validation, "validation")
        with tempfile.TemporaryDirectory(prefix="evenkeel-") as scratch:
            run = os.path.join(scratch, "run") if out is None else os.path.abspath(os.fspath(out))
            if out is None:
                options.setdefault("record_layers", 0)
            with naming_missing(data):
                facts = self._core.fit(data, validation, _pair(test, "test"), scratch, run, on_epoch, options)
        for note in facts["notes"]:
            if note.startswith("warning: "):
                warnings.warn(note[len("warning: "):], stacklevel=2)
        return History(facts, None if out is None else run)

    def evaluate(self, x: Any, y: Any = None, *, weight: Any = None, statistics: str = "running", **options: Any) -> Dict[str, Any]:
        """Loss and accuracy on examples, as a dict with "loss", "accuracy", "examples" and "statistics".

        Args:
            x, y, weight: as for fit(); or a data set by name, whose test set it is unless split="train" says otherwise.
            statistics: normalize by the "running" statistics or by those of each "batch".
            options: of `evenkeel eval`: batch_size, threads, corrupt="contrast=0.3", mean, std, scale, split, ...
        """
        _refuse_keras("evaluate()", options)
        if isinstance(x, (str, os.PathLike)):
            data: Any = os.fspath(x)
            options["weight"] = weight
        else:
            if y is None:
                raise _core.UsageError("evaluate(): y is missing: the label of every example")
            _refuse_reading("evaluate()", options, ("data", "split", "label", "resize", "layout", "validation"))
            data = _weighted(_plain(x), _plain(y), weight)
        with naming_missing(data):
            found: Dict[str, Any] = self._core.evaluate(data, statistics, with_numbers(options))
        for warning in found.pop("warnings"):
            warnings.warn(warning, stacklevel=2)
        return found

    def predict(self, x: Any, *, batch_size: int = 256, threads: Optional[int] = None) -> Array:
        """The most likely class of each example: int64 [N]. Does not depend on the other examples, bit for bit."""
        classes: Array = self.predict_proba(x, batch_size=batch_size, threads=threads).argmax(axis=1)
        return classes

    def predict_proba(self, x: Any, *, batch_size: int = 256, threads: Optional[int] = None) -> Array:
        """The probability of every class: float32 [N, classes]."""
        p: Array = self._core.scores(_plain(x), False, _batch(batch_size), _threads(threads))
        return p

    def logits(self, x: Any, *, batch_size: int = 256, threads: Optional[int] = None) -> Array:
        """What the probabilities are made from by softmax: float32 [N, classes]."""
        rows: Array = self._core.scores(_plain(x), True, _batch(batch_size), _threads(threads))
        return rows

    def save(self, path: Path) -> None:
        """Writes the network: .safetensors, which load() and the program read, or .onnx, for everybody else."""
        self._core.save(_path("path", path))

    def state_dict(self) -> Dict[str, Array]:
        """A copy of parameters and buffers by PyTorch's names: "conv1.weight" [out, in, k, k], "bn1.running_mean" [C], ..."""
        return self._core.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, *, mean: Any = None, std: Any = None) -> None:
        """Takes all values from arrays by PyTorch's names. Raises evenkeel.FormatError with all keys that are missing, left over or misshapen;
        "module." in front of all of them is left out, and num_batches_tracked may be missing.

        mean, std: as of load(): what the network standardizes its examples by from here on, pixels / 255 or features. A state dict does not
            have them: of one alone the other is 0 or 1. Without both the network keeps what it has, and where that is nothing a warning says that
            examples are taken as they are.
        strict: True; there is no other way, and PyTorch's programs may say so.
        """
        if strict is not True:
            raise _core.UsageError(f"load_state_dict(): strict is {strict!r}; expected True: the network takes all values or none, and only "
                                   "num_batches_tracked may be missing")
        given = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
        if not self._core.load_state_dict(state_of("state", state), with_numbers(given)):
            warnings.warn("load_state_dict(): a state dict has no standardization, and this network none of its own: it takes examples as they are, "
                          "pixels as pixels / 255; give the mean and std that the network was trained with (mean=0, std=1 if there were none)",
                          stacklevel=2)

    def __reduce__(self) -> Tuple[Any, ...]:
        """pickle and copy.deepcopy: by what save() writes."""
        facts = self._core.facts()
        if "input_shape" not in facts and not facts["onnx"] and not facts["fitting"]:
            return _restored, (type(self), "", None, facts["architecture"], False)
        name = "network.onnx" if facts["onnx"] else "network.safetensors"
        with tempfile.TemporaryDirectory(prefix="evenkeel-") as scratch:
            path = os.path.join(scratch, name)
            self._core.save(path)
            with open(path, "rb") as file:
                content = file.read()
        return _restored, (type(self), name, content, facts["architecture"], facts["trained"])

    @property
    def input_shape(self) -> Optional[Tuple[int, ...]]:
        """(C, H, W) or (F,); None as long as it is not known."""
        return self._core.facts().get("input_shape") or None

    @property
    def classes(self) -> Optional[int]:
        return self._core.facts().get("classes") or None

    @property
    def class_names(self) -> List[str]:
        return list(self._core.facts().get("class_names", []))

    def summary(self) -> str:
        """Parameters by name and shape, and what is known of the training, as text."""
        facts = self._core.facts()
        lines = [repr(self)[1:-1]]
        if facts.get("running_statistics"):
            lines.append("running statistics: " + facts["running_statistics"])
        tensors = facts.get("tensors", [])
        width = max((len(name) for name, _ in tensors), default=0)
        lines += [f"  {name:<{width}}  {list(shape)}" for name, shape in tensors]
        return "\n".join(lines)

    def __repr__(self) -> str:
        facts = self._core.facts()
        name = facts.get("name") or facts["architecture"]
        fitting = ", in training" if facts["fitting"] else ""
        if "input_shape" not in facts:
            if fitting:
                return f"<evenkeel.Network {name}: in training>"
            return f"<evenkeel.Network {name}: to be made by fit()>"
        if facts["onnx"]:
            return f"<evenkeel.Network {name}: ONNX>"
        shape = "x".join(str(extent) for extent in facts["input_shape"])
        state = fitting or ("" if facts["trained"] else ", initial values")
        return f"<evenkeel.Network {name}: {shape} -> {facts['classes']} classes, {facts['parameters']} parameters{state}>"


def zoo() -> List[str]:
    """The names that Network() knows."""
    return _core.zoo()
