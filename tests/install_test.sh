#!/usr/bin/env bash
# Installs a build into a temporary folder and builds a consumer against it, by find_package and by pkg-config.
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

# Every public header stands by itself, seen from the installed tree alone.
for header in "$prefix"/include/evenkeel/*.h; do
  echo "#include \"evenkeel/$(basename "$header")\"" >"$work/one.cc"
  "$compiler" -std=c++20 -Wall -Wextra -Werror -fsyntax-only -I"$prefix/include" "$work/one.cc" ||
    fail "$(basename "$header") does not compile by itself from the installed tree"
done

cmake -S "$here/consumer" -B "$work/by_cmake" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$prefix" \
  >"$work/log" 2>&1 && cmake --build "$work/by_cmake" >>"$work/log" 2>&1 ||
  { cat "$work/log"; fail "the consumer does not build by find_package"; }
LD_LIBRARY_PATH=$lib "$work/by_cmake/consumer" || fail "the consumer built by find_package fails"

if ! command -v pkg-config >/dev/null; then
  echo "pkg-config is not here: its half was left out"
  exit 77
fi
export PKG_CONFIG_PATH=$lib/pkgconfig
static=()
if [[ -f $lib/libevenkeel.a ]]; then static=(--static); fi
read -ra flags <<<"$(pkg-config --cflags evenkeel)"
read -ra libs <<<"$(pkg-config "${static[@]}" --libs evenkeel)"
"$compiler" -std=c++20 "${flags[@]}" "$here/consumer/main.cc" -o "$work/by_pkg_config" "${libs[@]}" ||
  fail "the consumer does not build by pkg-config"
said=$(LD_LIBRARY_PATH=$lib "$work/by_pkg_config") || fail "the consumer built by pkg-config fails"
[[ $said == "evenkeel $(pkg-config --modversion evenkeel)" ]] || fail "pkg-config names another version than '$said'"
