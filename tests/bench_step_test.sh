#!/usr/bin/env bash
# bench/step runs and prints valid JSON; no timing is asserted.   tests/bench_step_test.sh PROGRAM
# That evenkeel and libtorch train the same network (equal losses over three steps) is checked by the benchmark itself.
set -euo pipefail
program=${1:?the path of evenkeel}
bench=$(dirname "$program")/bench/step
if [[ ! -x $bench ]]; then
  echo "bench_step_test: $bench is not built"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Tests run side by side: threads that wait must not spin.
export OMP_WAIT_POLICY=passive

fail() {
  echo "bench_step_test: $1" >&2
  exit 1
}

"$bench" --quick --json >"$work/step.json" || fail "--quick --json ends with exit code $?"
"$bench" --quick --json --first-step --models mlp,resnet20 --program "$program" >"$work/first.json" ||
  fail "--first-step ends with exit code $?"
"$bench" --quick --markdown --models mlp --no-peer >"$work/step.md" || fail "--markdown ends with exit code $?"
grep -q '^| *mlp *| evenkeel *|' "$work/step.md" || fail "--markdown prints no row for mlp"

status=0
"$bench" --quick --models no-such-model >"$work/out" 2>"$work/error" || status=$?
[[ $status == 2 ]] || fail "an unknown model ends with exit code $status; expected 2"
grep -q 'no-such-model' "$work/error" || fail "an unknown model is not named"

python3 - "$work/step.json" "$work/first.json" <<'END'
import json
import sys

with open(sys.argv[1]) as file:
    step = json.load(file)
with open(sys.argv[2]) as file:
    first = json.load(file)
assert [r["model"] for r in step["results"]] == ["mlp", "cnn", "cnn-gap", "resnet20"], step["results"]
for result in step["results"]:
    assert result["contenders"][0]["name"] == "evenkeel", result
    for contender in result["contenders"]:
        assert contender["images_per_s"] > 0 and 0 < contender["slices_kept"] <= contender["slices"], contender
    assert ("ratio" in result) == (len(result["contenders"]) > 1), result
assert step["settings"]["batch"] == 16 and step["machine"]["cores"] >= 1, step
assert {r["model"] for r in first["first_step"]} == {"mlp", "resnet20"}, first
for result in first["first_step"]:
    assert result["first_step_ms"] > 0, result
END
