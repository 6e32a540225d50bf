#!/usr/bin/env bash
# Installs a build into a temporary folder and builds a consumer against it, by find_package and by pkg-config: it trains, and
# reads the model that the installed program made.
# The folder is then moved: nothing in it may know where it was.   tests/install_test.sh BUILD_FOLDER COMPILER
set -euo pipefail
build=${1:?the build folder}
compiler=${2:?the C++ compiler}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "install_test: $1" >&2
  exit 1
}

cmake --install "$build" --prefix "$work/first" >"$work/log" 2>&1 || { cat "$work/log"; fail "cmake --install failed"; }
mv "$work/first" "$work/moved"
prefix=$work/moved
source_root=$(dirname "$here")
if grep -rIlF -e "$source_root/" -e "$work/first" "$prefix" --include='*.cmake' --include='*.pc'; then
  fail "the files above name the source folder or the first place of installation"
fi
lib=$(dirname "$(find "$prefix" -name 'libevenkeel.*' -print -quit)")
[[ -f $prefix/include/evenkeel/version.h ]] || fail "evenkeel/version.h is not installed"
for name in LICENSE cli.md evenkeel.1 _evenkeel evenkeel.fish completions/evenkeel; do
  found=$(find "$prefix/share" -path "*/$name" -size +0 -print -quit)
  [[ -n $found ]] || fail "$name is not installed, or empty"
done

# Every public header stands by itself, seen from the installed tree alone.
for header in "$prefix"/include/evenkeel/*.h; do
  echo "#include \"evenkeel/$(basename "$header")\"" >"$work/one.cc"
  "$compiler" -std=c++20 -Wall -Wextra -Werror -fsyntax-only -I"$prefix/include" "$work/one.cc" ||
    fail "$(basename "$header") does not compile by itself from the installed tree"
done

# A table of two classes, and a model that the installed program makes of it.
for ((i = 0; i < 64; i++)); do echo "$((i % 2 * 10 + i % 5)),$((i % 7)),$((i % 2 == 0)).5,kind$((i % 2))"; done >"$work/table.csv"
"$prefix/bin/evenkeel" train --data "$work/table.csv" --model mlp --batch-size 16 --max-steps 4 --out "$work/run" --quiet \
  >"$work/log" 2>&1 || { cat "$work/log"; fail "the installed program does not train"; }

# What the consumer says of it must be what the program says.
check_consumer() {  # the consumer, the way it was built
  local said expected
  said=$(LD_LIBRARY_PATH=$lib "$1" "$work/table.csv" "$work/run/model.safetensors" "$work/run_$2") ||
    fail "the consumer built by $2 fails"
  expected=$(echo "3,1,0.5" >"$work/row.csv" && "$prefix/bin/evenkeel" predict "$work/run" "$work/row.csv" | cut -f 2)
  [[ $said == "evenkeel $("$prefix/bin/evenkeel" --version | cut -d ' ' -f 2): $expected" ]] ||
    fail "the consumer built by $2 says '$said', the program says '$expected'"
}

cmake -S "$here/consumer" -B "$work/by_cmake" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$prefix" \
  >"$work/log" 2>&1 && cmake --build "$work/by_cmake" >>"$work/log" 2>&1 ||
  { cat "$work/log"; fail "the consumer does not build by find_package"; }
check_consumer "$work/by_cmake/consumer" find_package

if ! command -v pkg-config >/dev/null; then
  echo "pkg-config is not here: its half was left out"
  exit 77
fi
export PKG_CONFIG_PATH=$lib/pkgconfig
read -ra flags <<<"$(pkg-config --cflags --libs evenkeel)"
"$compiler" -std=c++20 "$here/consumer/main.cc" -o "$work/by_pkg_config" "${flags[@]}" ||
  fail "the consumer does not build by pkg-config"
check_consumer "$work/by_pkg_config" pkg_config
[[ $("$prefix/bin/evenkeel" --version) == "evenkeel $(pkg-config --modversion evenkeel) "* ]] ||
  fail "pkg-config names another version than the program"

# Inference in a program of C++ and in one of C.
"$prefix/bin/evenkeel" convert "$work/run/model.safetensors" -o "$work/model.onnx" >"$work/log" 2>&1 ||
  { cat "$work/log"; fail "the installed program does not write ONNX"; }
c_compiler=${compiler/clang++/clang}
c_compiler=${c_compiler/g++/gcc}
c_compiler=${c_compiler/%c++/cc}
"$compiler" -std=c++20 "$here/../examples/cpp/inference.cc" -o "$work/inference_cpp" "${flags[@]}" ||
  fail "examples/cpp/inference.cc does not build by pkg-config"
"$c_compiler" -std=c99 "$here/../examples/c/inference.c" -o "$work/inference_c" "${flags[@]}" ||
  fail "examples/c/inference.c does not build by pkg-config"
from_cpp=$(LD_LIBRARY_PATH=$lib "$work/inference_cpp" "$work/model.onnx" | sort -u)
from_c=$(LD_LIBRARY_PATH=$lib "$work/inference_c" "$work/model.onnx")
[[ $from_cpp == logits:* && $from_cpp == "$from_c" ]] || fail "the examples say '$from_cpp' and '$from_c'"
