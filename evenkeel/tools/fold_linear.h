// The nodes that norms are folded into: products with constant weights.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/tools/fold_graph.h"

namespace evenkeel::tools {

bool is_product(const onnx::Node& node);
// "conv", "convtranspose", "gemm", "matmul".
std::string word_of_product(const onnx::Node& node);

// A Conv, ConvTranspose, Gemm or MatMul and its constants, to be changed and then assigned.
struct Product {
  size_t node = 0;
  ScaledWeights weights = {};
  std::optional<Weights> addend = {};  // the bias; Gemm's C, any shape that it may have
  double alpha = 1, beta = 1;          // of Gemm
  bool matrix = false;                 // Gemm or MatMul

  int64_t inputs() const { return weights.inputs(); }
  int64_t outputs() const { return weights.outputs(); }

  // out = scale * out + shift, per output channel; false where the addend does not allow it.
  bool scale_and_shift_outputs(const Affine& affine);
  // The product of scale * in + shift instead of that of in; exact where the kernel lies inside the input.
  bool absorb_input(const Affine& affine);
  // Why the changed values cannot be stored; "" = they can.
  std::string unstorable() const;
};

// The product at that node. Nothing where it is none of the four or has no constants; `reason` then says why.
std::optional<Product> product_at(const FoldGraph& graph, size_t node, std::string& reason);
// Writes it back. A MatMul that got an addend becomes a Gemm: its operands must be matrices.
void assign(FoldGraph& graph, Product product);

// True where every input that a Conv or ConvTranspose meets counts with its whole kernel: no padding in any form.
bool is_unpadded(const onnx::Node& node, const Product& product);

}  // namespace evenkeel::tools
