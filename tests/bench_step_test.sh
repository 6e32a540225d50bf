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
"$bench" --quick --json --first-step --models mlp,resnet20 --threads 2 --program "$program" >"$work/first.json" ||
  fail "--first-step ends with exit code $?"
"$bench" --quick --json --memory --growth mlp --models mlp --threads 1 >"$work/growth.json" ||
  fail "--memory --growth ends with exit code $?"
"$bench" --quick --json --models vgg11,resnet18 --batch 8 --threads 2 >"$work/large.json" ||
  fail "--models vgg11,resnet18 ends with exit code $?"
"$bench" --quick --markdown --steps --memory --growth mlp --models mlp --no-peer >"$work/step.md" ||
  fail "--markdown ends with exit code $?"
grep -q '^| *mlp *| *1 *|.*|$' "$work/step.md" || fail "--markdown prints no result for mlp"
grep -q '^| *mlp *| evenkeel *|' "$work/step.md" || fail "--markdown prints no row for mlp"
grep -q '^| *mlp *| *64 *|' "$work/step.md" || fail "--markdown prints no growth of mlp"

status=0
"$bench" --quick --models no-such-model >"$work/out" 2>"$work/error" || status=$?
[[ $status == 2 ]] || fail "an unknown model ends with exit code $status; expected 2"
grep -q 'no-such-model' "$work/error" || fail "an unknown model is not named"

python3 - "$work/step.json" "$work/large.json" "$work/first.json" "$work/growth.json" <<'END'
import json
import sys


def read(path):
    with open(path) as file:
        return json.load(file)


step, large, first, growth = [read(path) for path in sys.argv[1:5]]
peer = step["versions"]["peer"] != ""
default = ["mlp", "cnn", "cnn-gap", "resnet20"]
threads = sorted({1, step["machine"]["cores"]})
assert step["settings"]["threads"] == threads, step["settings"]
assert [(r["threads"], r["network"]) for r in step["results"]] == [(t, n) for t in threads for n in default]
assert [r["network"] for r in large["results"]] == ["vgg11", "resnet18"]
for result in step["results"] + large["results"]:
    assert result["batch"] == (8 if result in large["results"] else 16), result
    assert result["step_ms"] > 0 and result["peak_memory_bytes"] > 2**20, result
    assert (result["libtorch_peak_memory_bytes"] or 0) > (2**20 if peer else -1), result
    assert ((result["over_libtorch"] or 0) > 0) == peer and result["over_libtorch_tuned"] is None, result
    assert [h["heap"] for h in result["heaps"]] == ["default"], result
    contenders = result["heaps"][0]["contenders"]
    assert contenders[0]["name"] == "evenkeel" and ("ratio" in result["heaps"][0]) == peer, result
    for contender in contenders:
        assert contender["images_per_s"] > 0 and 0 < contender["slices_kept"] <= contender["slices"], contender
    # Every convolution or product goes forward once and has one gradient of its weight; the first has none of its input.
    calls = [call.split(":")[0].split(", ")[-1] for call in result["floor_calls"]]
    if any(c["side"] == "floor" for c in contenders):
        assert result["over_floor"] > 0 and calls, result
        count = {kind: calls.count(kind) for kind in ("forward", "weight gradient", "input gradient")}
        layers = {"mlp": 3, "cnn": 4, "cnn-gap": 4, "resnet20": 20, "vgg11": 9, "resnet18": 21}[result["network"]]
        assert count == {"forward": layers, "weight gradient": layers, "input gradient": layers - 1}, count
    else:
        assert result["over_floor"] is None and not calls, result
assert step["settings"]["batch"] == 16 and step["machine"]["cores"] >= 1, step
assert {r["model"] for r in first["first_step"]} == {"mlp", "resnet20"}, first
for result in first["first_step"]:
    assert result["first_step_ms"] > 0 and result["threads"] == 2, result
assert "results" not in growth and [r["network"] for r in growth["memory"]] == ["mlp"], growth
assert [p["batch"] for p in growth["growth"]["points"]] == [32, 64], growth
for point in growth["growth"]["points"]:
    assert point["us_per_image"] > 0 and point["peak_memory_bytes"] > 2**20, point
    assert ((point["libtorch_us_per_image"] or 0) > 0) == peer, point
assert isinstance(growth["growth"]["memory_bytes_per_image"], float), growth
END
