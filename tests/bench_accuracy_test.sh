#!/usr/bin/env bash
# bench/accuracy: evenkeel keeps its bounds on small data, with the same result for any number of threads.   tests/bench_accuracy_test.sh PROGRAM
set -euo pipefail
program=${1:?the path of evenkeel}
bench=$(dirname "$program")/bench/accuracy
if [[ ! -x $bench ]]; then
  echo "bench_accuracy_test: $bench is not built"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Tests run side by side: threads that wait must not spin.
export OMP_WAIT_POLICY=passive

fail() {
  echo "bench_accuracy_test: $1" >&2
  exit 1
}

"$bench" --max-values 1e4 --threads 1 --json "$work/one.json" >"$work/out" || fail "ends with exit code $?"
"$bench" --max-values 1e4 --threads 2 --json "$work/two.json" --markdown >"$work/out.md" ||
  fail "--threads 2 ends with exit code $?"
for name in evenkeel oneDNN libtorch; do
  head -n 1 "$work/out" | grep -Eq "$name( [0-9]|: not found)" || fail "does not say whether it found $name"
done
grep -q '^| *1e4 *| *1 *|' "$work/out.md" || fail "--markdown prints no row for 1e4 values"

status=0
"$bench" --max-values 10 >"$work/out" 2>"$work/error" || status=$?
[[ $status == 2 ]] || fail "--max-values 10 ends with exit code $status; expected 2"
status=0
"$bench" --max-values 1e3 --json "$work/no/such/folder" >"$work/out" 2>"$work/error" || status=$?
[[ $status == 4 ]] || fail "a file that cannot be written ends with exit code $status; expected 4"

python3 - "$work/one.json" "$work/two.json" <<'END'
import json
import sys

with open(sys.argv[1]) as file:
    one = json.load(file)
with open(sys.argv[2]) as file:
    two = json.load(file)


def of(document, contender):
    return [r for r in document["results"] if r["contender"] == contender]


assert one["broken_bounds"] == [], one["broken_bounds"]
layouts = ["nchw", "nhwc", "nChw16c", "dense"]
grid = {(r["values"], r["mean_over_std"], r["layout"]) for r in of(one, "evenkeel") if r["data"] == "normal"}
assert grid == {(v, m, l) for v in (1000, 10000) for m in (1, 1e2, 1e4, 1e6) for l in layouts}, grid
assert {r["data"] for r in of(one, "evenkeel")} == {"normal", "constant", "far start", "padded"}
# The bounds once more, by hand: the exit code must not be the only witness.
for r in of(one, "evenkeel"):
    assert r["variance_error"] <= (0 if r["data"] == "constant" else 2e-7), r
    assert r["y_ulp"] <= 4 and r.get("dx_error", 0) <= 6e-7, r
    # fp32 results of random data are not exact: an error of 0 would be one that was not measured.
    assert r["data"] == "constant" or r["y_ulp"] > 0.1, r
assert of(one, "evenkeel") == of(two, "evenkeel"), "threads change a result"
# The peers round their means to fp32, half an ulp of 10^6 being 0.03: what measures nothing of that measures nothing.
for peer in set(one["versions"]) - {"evenkeel"}:
    found = [r for r in of(one, peer) if r.get("mean_over_std") == 1e6]
    assert found and all(r["mean_error"] > 1e-3 and r["y_ulp"] > 4 for r in found), found
END
