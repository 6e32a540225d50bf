#!/usr/bin/env bash
# The packages on a Debian that has nothing else: installed by apt, used, built against, removed; then the .tar.gz.
#   tests/packages_test.sh FOLDER      FOLDER: what scripts/make_packages wrote
# Needs root and debootstrap, and the network the first time: build/debian keeps the fresh system, build/debian-archives what apt fetched.
set -euo pipefail
packages=$(cd "${1:?the folder of the packages}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "packages_test: $1" >&2; exit 1; }
skip() { echo "packages_test: skipped: $1" >&2; exit 77; }
((EUID == 0)) || skip "only root can make a clean root"
command -v debootstrap >/dev/null || skip "debootstrap is not installed (scripts/install_deps.sh packages)"
mirror=${EVENKEEL_DEBIAN_MIRROR:-http://deb.debian.org/debian}

fresh=build/debian archives=build/debian-archives
if [[ ! -f $fresh/ready ]]; then
  rm -rf "$fresh"
  mkdir -p build
  debootstrap --variant=minbase bookworm "$fresh" "$mirror" >build/debian.log 2>&1 ||
    { tail -n 5 build/debian.log; rm -rf "$fresh"; skip "debootstrap cannot make a root from $mirror (build/debian.log)"; }
  chroot "$fresh" apt-get -qq update >>build/debian.log 2>&1 || { rm -rf "$fresh"; skip "apt-get update fails in the clean root (build/debian.log)"; }
  touch "$fresh/ready"
fi
mkdir -p "$archives"
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
cp -a "$fresh/." "$root"
cp -a "$archives/." "$root/var/cache/apt/archives/"
# apt as root would otherwise drop its rights to a user that cannot read the folder, and say so.
echo 'APT::Sandbox::User "root";' >"$root/etc/apt/apt.conf.d/10test"
mkdir -p "$root/trial"
cp "$packages"/*.deb "$packages"/*.tar.gz "$root/trial/"
cp -r tests/consumer tests/inference_c99.c examples docs/install.md "$root/trial/"

# A command in the root, with a /proc and mounts of its own that end with it.
inside() {
  unshare --mount --pid --fork --mount-proc="$root/proc" chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash -euc "cd /trial; $1"
}
unshare --mount true 2>/dev/null || skip "this machine lets nobody mount (unshare --mount)"
apt_log=$root/trial/apt.log
install() {  # words of apt-get install
  inside "apt-get install -y --no-install-recommends $*" >"$apt_log" 2>&1 ||
    { tail -n 20 "$apt_log"; grep -qE 'Failed to fetch|Unable to fetch' "$apt_log" && skip "no network for apt"; fail "apt-get install $*"; }
  cp -u "$root"/var/cache/apt/archives/*.deb "$archives/" || true
}
expect() {  # what is tried, a pattern of what is printed, the command
  local said
  said=$(inside "$3" 2>&1) || fail "$1: exit code $? of: $3"$'\n'"$said"
  grep -qE -e "$2" <<<"$said" || fail "$1: expected '$2' in what is printed by: $3"$'\n'"$said"
}

# A small binary is a promise of docs/install.md: no program and no library above 10 MB, stripped, oneDNN not counted. (Python's extension is both.)
mkdir "$root/trial/unpacked"
for file in "$packages"/*.deb; do dpkg-deb -x "$file" "$root/trial/unpacked"; done
large=$(find "$root/trial/unpacked" -type f -size +10000000c ! -path '*/python3/*')
[[ -z $large ]] || fail "files above 10 MB: $(xargs -n 1 stat -c '%n has %s bytes' <<<"$large")"
rm -rf "$root/trial/unpacked"

echo "packages_test: the program"
install ./evenkeel_*.deb
grep -E '^(Need to get|After this operation|0 upgraded|[0-9]+ upgraded)' "$apt_log" || true
for ((i = 0; i < 64; i++)); do echo "$((i % 2 * 10 + i % 5)),$((i % 7)),$((i % 2 == 0)).5,kind$((i % 2))"; done >"$root/trial/table.csv"
expect "version" '^  oneDNN +2\.' "evenkeel --version --verbose"
expect "training" 'test accuracy' "evenkeel train --data table.csv --model mlp --batch-size 16 --max-steps 4 --out run"
expect "inspect" 'bn1|norm' "evenkeel inspect run"
expect "explain" 'EK101' "evenkeel explain EK101"
inside "evenkeel convert run/model.safetensors -o model.onnx" >/dev/null || fail "convert to ONNX"
expect "ONNX" 'bn1|norm' "evenkeel inspect model.onnx"
launcher=$(inside "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 evenkeel train --data table.csv --model mlp --out run2 2>&1 || echo exit \$?")
[[ $launcher == *MPI*exit\ 5* ]] || fail "under a launcher a program without MPI should say so, exit code 5; it says: $launcher"

echo "packages_test: man pages and completions"
install man-db bash-completion zsh fish
for page in evenkeel evenkeel-train evenkeel-data-info; do
  expect "man $page" "${page^^}\(1\)" "man $page | cat"
done
expect "bash" '^train$' ". /usr/share/bash-completion/bash_completion; _completion_loader evenkeel || true; COMP_WORDS=(evenkeel tr); COMP_CWORD=1; _evenkeel; echo \$COMPREPLY"
expect "zsh" '^_evenkeel$' "zsh -fc 'autoload -Uz compinit; compinit -u -D; print \$_comps[evenkeel]'"
expect "fish" '^train' "fish -c 'complete -C \"evenkeel tr\"'"

echo "packages_test: programs of others, in C and C++"
install ./libevenkeel0_*.deb ./libevenkeel-dev_*.deb
expect "what libevenkeel-dev brings" '^Depends: libevenkeel0 \(= [^)]*\)$' "dpkg -s libevenkeel-dev"
install gcc g++ cmake ninja-build pkg-config
inside "cmake -S consumer -B by_cmake -G Ninja && cmake --build by_cmake" >"$root/trial/log" 2>&1 || { cat "$root/trial/log"; fail "the consumer does not build by find_package"; }
expect "the consumer by find_package" '^evenkeel [0-9.]+: kind[01]$' "by_cmake/consumer table.csv run/model.safetensors by_cmake/run"
inside "g++ -std=c++20 consumer/main.cc -o consumer_pc \$(pkg-config --cflags --libs evenkeel)" || fail "the consumer does not build by pkg-config"
expect "the consumer by pkg-config" '^evenkeel [0-9.]+: kind[01]$' "./consumer_pc table.csv run/model.safetensors run_pc"
inside "gcc -std=c99 examples/c/inference.c -o inference_c \$(pkg-config --cflags --libs evenkeel)" || fail "examples/c/inference.c"
expect "examples/c/inference.c" '^logits: ' "./inference_c model.onnx"
inside "g++ -std=c++20 examples/cpp/inference.cc -o inference_cpp \$(pkg-config --cflags --libs evenkeel)" || fail "examples/cpp/inference.cc"
expect "examples/cpp/inference.cc" '^logits: ' "./inference_cpp model.onnx"
inside "gcc -std=c99 examples/c/norm.c -o norm \$(pkg-config --cflags --libs evenkeel_norm)" || fail "examples/c/norm.c"
expect "examples/c/norm.c" 'dx' "./norm"
# C by CMake, both libraries.
cat >"$root/trial/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.25)
project(c_consumer LANGUAGES C CXX)
find_package(evenkeel 0.1 CONFIG REQUIRED)
find_package(evenkeel_norm 0.1 CONFIG REQUIRED)
add_executable(inference examples/c/inference.c)
target_link_libraries(inference PRIVATE evenkeel::evenkeel)
add_executable(norm_alone examples/c/norm.c)
target_link_libraries(norm_alone PRIVATE evenkeel::norm)
EOF
inside "cmake -S . -B c_by_cmake -G Ninja && cmake --build c_by_cmake" >"$root/trial/log" 2>&1 || { cat "$root/trial/log"; fail "a program in C does not build by find_package"; }
expect "C by find_package" '^logits: ' "c_by_cmake/inference model.onnx"
expect "C by find_package, the kernels" 'dx' "c_by_cmake/norm_alone"

# Says what it has done only where all of it is right. Arguments: the version, the folder that evenkeel is below, a model, a run.
cat >"$root/trial/use_python.py" <<'EOF'
import sys

import numpy

import evenkeel

version, folder, model, run = sys.argv[1:]
assert evenkeel.__version__ == version, evenkeel.__version__
assert evenkeel.__file__.startswith(folder + "/"), evenkeel.__file__
x = numpy.random.default_rng(1).normal(3, 2, (64, 5)).astype(numpy.float32)
expected = (x - x.mean(0, dtype="float64")) / numpy.sqrt(x.var(0, dtype="float64") + 1e-5)
error = abs(evenkeel.batch_norm(x, training=True, eps=1e-5) - expected).max()
assert error < 2e-6, error  # x / sigma is below 8, where a rounding to float is 2.4e-7 at most: eight of them
report = evenkeel.inspect(model)
norms = [norm.name for norm in report.norms]
assert norms and norms[0] in str(report), (norms, str(report))
network = evenkeel.Network.load(run)
rows = numpy.array([[3, 1, 0.5], [12, 4, 1.5]], dtype=numpy.float32)
classes = network.predict(rows)
assert classes.shape == (2,) and classes.tolist() == network.logits(rows).argmax(1).tolist() and set(classes) <= {0, 1}, classes
print("norms:", *norms, "classes:", *classes)
EOF
version=$(sed -n 's/^#define EVENKEEL_VERSION "\(.*\)"$/\1/p' evenkeel/version.h)
if compgen -G "$packages/python3-evenkeel_*.deb" >/dev/null; then
  echo "packages_test: Python"
  install ./python3-evenkeel_*.deb
  for model in model.onnx run/model.safetensors; do
    expect "the Python package, $model" '^norms: .* classes: [01] [01]$' "python3 use_python.py $version /usr/lib/python3/dist-packages $model run"
  done
fi

echo "packages_test: removed again"
inside "apt-get purge -y '?name(evenkeel)' && apt-get autoremove -y --purge" >"$apt_log" 2>&1 || { tail -n 20 "$apt_log"; fail "apt-get purge"; }
left=$(find "$root" -xdev -path "$root/trial" -prune -o -path "$root/var/cache/apt" -prune -o -path "$root/var/cache/man" -prune -o -path "$root/root" -prune -o -name '*evenkeel*' -print)
[[ -z $left ]] || fail "files are left behind: $left"

echo "packages_test: the .tar.gz, in two places"
needed=$(sed -n 's/^ *sudo apt install \(libdnnl2 .*\)$/\1/p' "$root/trial/install.md")
[[ -n $needed ]] || fail "docs/install.md does not say which packages the .tar.gz needs (sudo apt install libdnnl2 ...)"
install "$needed"
# shellcheck disable=SC2016  # backquotes of Markdown
python_path=$(sed -n 's/.*Python package is in `\([^`]*\)`: add that to `PYTHONPATH`.*/\1/p' "$root/trial/install.md")
[[ -n $python_path ]] || fail "docs/install.md does not say which folder of the .tar.gz PYTHONPATH needs"
for place in /opt/one "/opt/two words"; do
  inside "mkdir -p '$place' && tar xzf evenkeel-*.tar.gz -C '$place' --strip-components=1" || fail "tar"
  expect "the program in $place" '^  oneDNN +2\.' "'$place/bin/evenkeel' --version --verbose"
  expect "prediction in $place" 'kind[01]' "echo 3,1,0.5 >row.csv; '$place/bin/evenkeel' predict run row.csv"
  if compgen -G "$packages/python3-evenkeel_*.deb" >/dev/null; then
    # Python went with the packages above.
    install python3 python3-numpy
    expect "the Python package in $place" '^norms: .* classes: [01] [01]$' \
      "PYTHONPATH='$place/$python_path' python3 use_python.py $version '$place' model.onnx run"
  fi
  rm -rf "$root/trial/tar_build"
  lib=$(cd "$root$place" && dirname "$(find lib -name libevenkeel.so)")
  if inside "command -v cmake" >/dev/null; then
    inside "cmake -S consumer -B tar_build -G Ninja -DCMAKE_PREFIX_PATH='$place' && cmake --build tar_build" >"$root/trial/log" 2>&1 ||
      { cat "$root/trial/log"; fail "the consumer does not build against $place"; }
    expect "the consumer against $place" '^evenkeel [0-9.]+: kind[01]$' "LD_LIBRARY_PATH='$place/$lib' tar_build/consumer table.csv run/model.safetensors tar_build/run"
  fi
  inside "mv '$place' /opt/moved && /opt/moved/bin/evenkeel --version" >/dev/null || fail "a moved folder does not run"
  rm -rf "$root/opt/moved"
done
echo "packages_test: all is well"
