#!/usr/bin/env python3
"""scripts/scaling_model: its networks are those of the program, its parts follow their formulas, and the document shows what it says.

  tests/scaling_model_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM says
"""
import importlib.machinery
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/scaling_model"
program = os.environ.get("EVENKEEL_PROGRAM", str(ROOT / "build/release/evenkeel"))
if len(sys.argv) > 1 and os.path.isfile(sys.argv[1]):
    program = sys.argv.pop(1)

sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("scaling_model", str(SCRIPT))
model = importlib.util.module_from_spec(importlib.util.spec_from_loader("scaling_model", loader))
loader.exec_module(model)
MEASURED = json.loads(model.MEASURED.read_text(encoding="utf-8"))
NETWORK = model.NETWORKS["10 GbE"]


class ScalingModel(unittest.TestCase):
    def test_the_networks_have_the_parameters_that_the_program_says(self):
        for name, (layers, shape) in model.MODELS.items():
            done = subprocess.run([program, "plan", name, "--input", shape, "--no-run", "--json"], capture_output=True, text=True, check=True)
            self.assertEqual(model.floats_of(layers), json.loads(done.stdout)["parameters"], name)

    def test_what_travels_is_what_the_program_says(self):
        for name, (_, shape) in model.MODELS.items():
            for ranks, batch in ((2, 64), (3, 120)):
                words = [program, "plan", name, "--input", shape, "--ranks", ranks, "--batch-size", batch, "--no-run", "--json"]
                done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
                traffic = json.loads(done.stdout)["traffic"]
                step = model.Step(MEASURED, name, model.NO_COST, ranks, batch)
                self.assertEqual((step.exchanges, step.exchange_bytes, step.gradient_bytes),
                                 (traffic["exchanges"], traffic["reduction_bytes"], traffic["gradient_bytes"]), (name, ranks))

    def test_the_gradient_of_every_weight_is_in_one_bucket(self):
        for name, (layers, _) in model.MODELS.items():
            self.assertEqual(sum(count for _, count in model.buckets_of(layers)), sum(layer.weights for layer in layers), name)

    def test_one_rank_computes_and_nothing_else(self):
        step = model.Step(MEASURED, "resnet20", NETWORK, 1, 128)
        self.assertEqual(step.seconds, MEASURED["step_s"]["resnet20"]["128"])

    def test_a_network_that_costs_nothing_has_no_synchronization(self):
        for p, step, efficiency in model.weak(MEASURED, "resnet20", model.NO_COST, 32):
            self.assertEqual((step.sync_share, efficiency), (0, 1), p)

    def test_synchronization_costs_the_more_the_more_ranks_there_are(self):
        for network in model.NETWORKS.values():
            shares = [step.sync_share for p, step, _ in model.weak(MEASURED, "resnet20", network, 32) if p >= 4]
            self.assertEqual(shares, sorted(shares))
            self.assertGreater(shares[-1], shares[0])

    def test_overlap_hides_gradients_and_nothing_else(self):
        hidden = model.Step(MEASURED, "vgg11", NETWORK, 8, 256)
        bare = model.Step(MEASURED, "vgg11", NETWORK, 8, 256, overlap=0)
        self.assertEqual(hidden.blocked_s, bare.blocked_s)
        total = sum(model.reduce_s(NETWORK, 8, count, False) for _, count in bare.buckets)
        self.assertAlmostEqual(bare.waited_s, total)
        self.assertLess(hidden.waited_s, bare.waited_s)

    def test_local_norms_exchange_the_loss_only(self):
        step = model.Step(MEASURED, "resnet20", NETWORK, 8, 256, local=True)
        self.assertEqual((step.exchanges, step.exchange_bytes), (1, 16))

    def test_collectives_follow_their_formulas(self):
        network = (1.0, 2.0, 10.0)  # a second of latency, 2 bytes a second, busy for 10 s
        self.assertEqual(model.gather_s(network, 8, 6, False), 1 + 7 * (10 + 3))
        self.assertEqual(model.gather_s(network, 8, 6, True), 3 + 7 * 3)
        self.assertEqual(model.reduce_s(network, 2, 100_000, False), 1 + 200_000)
        self.assertEqual(model.reduce_s(network, 3, 100_000, False), 4 * (1 + 200_000))
        self.assertEqual(model.reduce_s(network, 8, 100_000, False), 14 + 2 * 7 / 8 * 200_000)
        self.assertEqual(model.reduce_s(network, 8, 1000, False), 2 * 3 * (1 + 2000))
        self.assertEqual(model.reduce_s(network, 8, 1000, True), 6 + 2 * 7 / 8 * 2000)

    def test_the_nodes_of_a_share_are_the_fewest_aligned_subtrees(self):
        def fewest(first, end):  # by trying
            if first == end:
                return 0
            sizes = [1 << level for level in range(12) if first % (1 << level) == 0 and first + (1 << level) <= end]
            return 1 + min(fewest(first + size, end) for size in sizes)

        for first in range(12):
            for blocks in range(1, 12):
                self.assertEqual(model.nodes_of(first, blocks), fewest(first, first + blocks), (first, blocks))

    def test_a_share_is_whole_blocks(self):
        self.assertEqual(model.Step(MEASURED, "resnet20", model.NO_COST, 3, 128).examples, 48)
        self.assertTrue(math.isclose(model.compute_s(MEASURED, "resnet20", 48),
                                     (MEASURED["step_s"]["resnet20"]["32"] + MEASURED["step_s"]["resnet20"]["64"]) / 2))

    def test_document_and_chart_are_what_the_script_makes(self):
        table = subprocess.run([sys.executable, str(SCRIPT), "--markdown"], capture_output=True, text=True, check=True).stdout
        document = (ROOT / "docs/many-machines.md").read_text(encoding="utf-8")
        for line in table.splitlines():
            self.assertTrue(line in document, line)
        chart = subprocess.run([sys.executable, str(SCRIPT), "--svg", "/dev/stdout"], capture_output=True, text=True, check=True).stdout
        self.assertTrue(chart == (ROOT / "docs/images/scaling.svg").read_text(encoding="utf-8"), "docs/images/scaling.svg")


if __name__ == "__main__":
    if not os.access(program, os.X_OK):
        print(f"scaling_model_test: no program '{program}'", file=sys.stderr)
        sys.exit(77)
    unittest.main()
