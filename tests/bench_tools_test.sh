#!/usr/bin/env bash
# bench/tools.py runs; its JSON and tables hold what was asked for. No timing is asserted.   tests/bench_tools_test.sh PROGRAM
# That the contenders compute the same is checked by the benchmark itself, which fails else.
set -euo pipefail
program=${1:?the path of evenkeel}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -x $(dirname "$program")/bench/tools ]]; then
  echo "bench_tools_test: $(dirname "$program")/bench/tools is not built"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "bench_tools_test: $1" >&2
  exit 1
}

few=(--program "$program" --rounds 1 --slice-ms 1 --megabytes 5)
"$here/../bench/tools.py" "${few[@]}" --batches 1 --json >"$work/json" || fail "--json ends with exit code $?"
python3 - "$work/json" <<'END' || fail "the JSON lacks something: $(cat "$work/json")"
import json, sys
result = json.load(open(sys.argv[1]))
files = result["files"]
assert 3 < files["megabytes"] < 7 and all(files[name] > 0 for name in ("copy_s", "inspect_over_copy", "fold_over_copy_flushed")), files
assert all(row["evenkeel_ms"] > 0 for row in result["latency"]), result
END
"$here/../bench/tools.py" "${few[@]}" --parts files >"$work/table" || fail "the tables end with exit code $?"
grep -q '^| `fold --verify 0` | ' "$work/table" || fail "no row for fold"
