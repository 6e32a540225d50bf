#!/usr/bin/env bash
# bench/norm runs; its JSON and tables hold what was asked for. No timing is asserted.   tests/bench_norm_test.sh PROGRAM
# That the peers compute the same (every operation and layout, with and without relu) is checked by the benchmark
# itself, which fails else.
set -euo pipefail
program=${1:?the path of evenkeel}
bench=$(dirname "$program")/bench/norm
if [[ ! -x $bench ]]; then
  echo "bench_norm_test: $bench is not built"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Tests run side by side: threads that wait must not spin.
export OMP_WAIT_POLICY=passive

fail() {
  echo "bench_norm_test: $1" >&2
  exit 1
}

"$bench" --quick --threads 1,2 --json "$work/norm.json" >"$work/norm.txt" ||
  fail "--quick --json FILE ends with exit code $?"
grep -q '^limit: ' "$work/norm.txt" || fail "the limit is not explained"
"$bench" --quick --no-peers --shapes 256x1024,8x16x9x7 --ops inference --threads 1 --relu without --markdown \
  >"$work/norm.md" ||
  fail "--markdown ends with exit code $?"
grep -q '^| *inference *| nhwc *| 8x16x9x7 *|' "$work/norm.md" || fail "--markdown prints no row for 8x16x9x7 in NHWC"
grep -q '^### Time over the limit' "$work/norm.md" || fail "--markdown prints no table of the times over the limit"
# Larger than a cache of any size is not what a test should wait for: without the memory for it, the group is left out,
# and said so.
status=0
"$bench" --quick --class larger --shapes 4096x512 --ops inference --threads 1 --memory-gb 0.001 \
  >"$work/out" 2>"$work/error" || status=$?
[[ $status == 2 ]] || fail "a run that leaves all out ends with exit code $status; expected 2"
grep -q 'memory-gb' "$work/error" || fail "what was left out, and why, is not named"

for words in "--shapes 64x" "--shapes 1x64" "--ops sideways" "--layouts chwn" "--threads 0" \
  "--class l3 --shapes 1000000x1024"; do
  status=0
  # shellcheck disable=SC2086  # words are words
  "$bench" --quick $words >"$work/out" 2>"$work/error" || status=$?
  [[ $status == 2 ]] || fail "$words ends with exit code $status; expected 2"
done

python3 - "$work/norm.json" <<'END'
import json
import sys

with open(sys.argv[1]) as file:
    norm = json.load(file)
results = norm["results"]
peers = set(norm["versions"]["peers"])
ours = {(r["operation"], r["layout"], r["relu"], r["shape"], r["threads"])
        for r in results if r["library"] == "evenkeel"}
for operation in ("inference", "forward", "backward"):
    for relu in (False, True):
        for threads in (1, 2):
            for shape in ("64x128", "256x1024"):
                assert (operation, "dense", relu, shape, threads) in ours, (operation, relu, shape, threads)
            for layout in ("nchw", "nhwc", "blocked"):
                assert (operation, layout, relu, "64x16x32x32", threads) in ours, (operation, layout, relu, threads)
assert len(ours) == 3 * 2 * 2 * (2 + 3), len(ours)
assert {r["library"] for r in results} == {"evenkeel"} | peers, peers
for r in results:
    assert r["limit_ms"] > 0 and r["median_ms"] > 0 and 0 < r["slices_kept"] <= r["slices"], r
    assert r["data"] == "L3", r
titles = [t["title"].split(",")[0] for t in norm["tables"]]
assert titles[:2] == ["Time over the limit", "Time with relu fused over the time without"], titles
assert len(titles) == (3 if peers else 2), titles
for table in norm["tables"]:
    for figure in table["figures"]:
        assert figure["value"] > 0 and figure["cases"] > 0, figure
END
