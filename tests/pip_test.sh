#!/usr/bin/env bash
# `pip install .` and `pip wheel .` from a copy of the sources, in a fresh virtual environment and without a network; then the package
# is used from there.   tests/pip_test.sh      (half a minute behind a release build, by ccache; exit 77: pip or venv is not here)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=/usr/bin/python3  # Debian's: its setuptools, wheel and NumPy are what an environment without a network has
for module in pip venv ensurepip setuptools wheel numpy; do
  if ! "$python" -c "import $module" 2>/dev/null; then
    echo "pip_test: $python has no $module (apt install python3-pip python3-venv python3-setuptools python3-wheel python3-numpy)" >&2
    exit 77
  fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "pip_test: $1" >&2
  exit 1
}

# What is tracked, and nothing that a build left.
mkdir "$work/source"
if git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
  git -C "$root" ls-files -z --cached --others --exclude-standard |
    tar -C "$root" --null --ignore-failed-read -T - -cf - 2>/dev/null | tar -C "$work/source" -xf -
else
  tar -C "$root" --exclude=./build -cf - . | tar -C "$work/source" -xf -
fi

"$python" -m venv --system-site-packages "$work/venv"
pip=("$work/venv/bin/pip" --disable-pip-version-check --no-input)
# The commands of the preset `release`, two folders below the sources as there: what that has compiled is in the compiler's cache.
export CCACHE_BASEDIR=$work/source EVENKEEL_CMAKE_ARGS=-DEVENKEEL_WERROR=ON
export PIP_NO_INDEX=1 CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-2}

# Without pybind11 there is one sentence that names the package.
if EVENKEEL_CMAKE_ARGS="$EVENKEEL_CMAKE_ARGS -DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON" "${pip[@]}" install --no-build-isolation "$work/source" >"$work/log" 2>&1; then
  fail "pip install went through without pybind11"
fi
grep -q "pybind11 or Python's headers are not found" "$work/log" || { cat "$work/log"; fail "no word of pybind11"; }
grep -q "apt install .*pybind11-dev" "$work/log" || fail "no line for apt"
rm -rf "$work/source/build"

"${pip[@]}" wheel --no-build-isolation --no-deps -w "$work/wheels" "$work/source" >"$work/log" 2>&1 ||
  { tail -n 40 "$work/log"; fail "pip wheel failed"; }
wheel=$(find "$work/wheels" -name 'evenkeel-*.whl' -print -quit)
version=$(sed -n 's/^#define EVENKEEL_VERSION "\(.*\)"$/\1/p' "$root/evenkeel/version.h")
[[ $(basename "$wheel") == evenkeel-"$version"-cp3*.whl ]] || fail "the wheel is $wheel; expected evenkeel-$version-cp3*.whl"
content=$("$python" -m zipfile -l "$wheel")
for file in __init__.py _norm.py network.py tools.py torch.py _core.pyi py.typed; do
  [[ $content == *"evenkeel/$file"* ]] || fail "$file is not in the wheel"
done
[[ $content != *test_* ]] || fail "tests are in the wheel"

# The build folder of the wheel is used again.
"${pip[@]}" install --no-build-isolation "$work/source" >"$work/log" 2>&1 || { tail -n 40 "$work/log"; fail "pip install failed"; }
cd "$work"
env -u PYTHONPATH "$work/venv/bin/python" - "$version" <<'PYTHON' || fail "the installed package does not work"
import sys

import numpy

import evenkeel

assert evenkeel.__version__ == sys.argv[1] and "/venv/" in evenkeel.__file__, evenkeel.__file__
y = evenkeel.batch_norm(numpy.arange(12, dtype="float32").reshape(6, 2), training=True)
assert abs(y.mean()) < 1e-6 and abs(y.std() - 1) < 1e-4
network = evenkeel.Network("mlp", seed=1)
x = numpy.random.default_rng(1).normal(size=(32, 3)).astype("float32")
history = network.fit(x, (x[:, 0] > 0).astype("int64"), epochs=1, batch_size=16)
assert history.steps == 2 and network.predict(x).shape == (32,)
network.save("model.safetensors")
report = evenkeel.inspect("model.safetensors")
assert report.norms and evenkeel.explain("EK108")["code"] == "EK108", report
PYTHON
"${pip[@]}" uninstall -y evenkeel >"$work/log" 2>&1 || fail "pip uninstall failed"
echo "pip_test: pip wheel, pip install and what they gave work ($(du -h "$wheel" | cut -f1) wheel)"
