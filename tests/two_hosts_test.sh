#!/usr/bin/env bash
# Training across two hosts that are network namespaces, and every fault that can be made of them: scripts/two_hosts.
#   tests/two_hosts_test.sh [PROGRAM]     exit 77: namespaces or Open MPI are not here, or the program was built without MPI
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=${1:-${EVENKEEL_PROGRAM:-build/release/evenkeel}}
if "$program" --version | grep -q 'no MPI'; then
  echo "two_hosts_test: $program was built without MPI" >&2
  exit 77
fi
exec scripts/two_hosts --program "$program"
