#!/usr/bin/env bash
# Installs what is missing, by apt:  scripts/install_deps.sh GROUP...   (groups: build run test all packages browser npm site aarch64)
# Costs one call of dpkg-query when everything is there. docs/dependencies.md says what each package is for.
set -euo pipefail

packages_of() {
  case "$1" in
    build) echo g++ cmake ninja-build ccache libdnnl-dev ocl-icd-opencl-dev libhwy-dev libcli11-dev nlohmann-json3-dev \
                libtomlplusplus-dev libfmt-dev zlib1g-dev libpng-dev libjpeg62-turbo-dev libprotobuf-dev protobuf-compiler \
                libonnx-dev libhdf5-dev libopenmpi-dev libjs-chart.js libgtest-dev libgmock-dev pybind11-dev python3-dev ;;
    run) echo dataset-fashion-mnist ;;
    test) echo openmpi-bin clang-format librapidcheck-dev libbenchmark-dev libonnx-testdata pkg-config python3 python3-numpy python3-pytest git ;;
    all) echo mypy clang clang-tidy libclang-rt-14-dev libomp-dev libtorch-dev python3-torch python3-numpy python3-onnx ;;
    packages) echo dpkg-dev file man-db debootstrap lintian zsh fish ;;
    browser) echo chromium ;;
    npm) echo nodejs npm ;;
    site) echo mkdocs python3-pygments ;;
    aarch64) echo cmake ninja-build python3 g++-aarch64-linux-gnu qemu-user ;;
    *) echo "install_deps.sh: unknown group '$1'; expected build, run, test, all, packages, browser, npm, site or aarch64." >&2; return 2 ;;
  esac
}

wanted=()
for group in "$@"; do
  names=$(packages_of "$group")
  read -ra list <<<"$names"
  wanted+=("${list[@]}")
done
if ((${#wanted[@]} == 0)); then exit 0; fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "No apt here. Needed, by their Debian names: ${wanted[*]}" >&2
  exit 0
fi

# dpkg-query fails when a package is unknown to it, and still lists the others.
installed=" $(dpkg-query -W -f='${Package}=${db:Status-Status} ' "${wanted[@]}" 2>/dev/null || true)"
missing=()
for package in "${wanted[@]}"; do
  if [[ "$installed" != *" $package=installed "* ]]; then missing+=("$package"); fi
done
if ((${#missing[@]} == 0)); then exit 0; fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "Missing packages, and neither root nor sudo here. Run as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 4
  fi
  as_root=(sudo)
fi
echo "Installing with apt: ${missing[*]}" >&2
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A failed update is no reason to stop: the lists that are there may do.
"${as_root[@]}" "${apt[@]}" update >"$log" 2>&1 || echo "apt-get update failed; going on with the lists that are there." >&2
if ! "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "apt-get could not install: ${missing[*]}" >&2
  exit 4
fi
