// What the images of a step are stored in, graph -> graph.
//
//   Graph step = with_updates(with_gradients(std::move(forward)), optimizer, parameters, &states);
//   Plan plan = make_plan(with_precision(std::move(step), Precision::kBF16), {.batch = 128});
#pragma once

#include "evenkeel/graph/graph.h"

namespace evenkeel {

enum class Precision {
  kF32,
  kBF16  // images and their gradients are stored in bf16; products are summed in fp32; all else is fp32
};

// With kBF16 every computed image ({C, H, W}) and every gradient of one becomes Element::kBF16, except those that a Flatten reads, or its
// gradient makes, and that no convolution and no norm has a part in: what follows on global pooling stays fp32. The input stays fp32, too;
// convolutions and norms read a copy of it that a Cast makes. Parameters, their gradients, moments, running statistics and the states of
// the optimizer are not touched. With kF32 the graph is returned as it is.
Graph with_precision(Graph graph, Precision precision);

}  // namespace evenkeel
