#include "evenkeel/tools/lint_rules.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {

const char* name_of(Severity severity) {
  switch (severity) {
    case Severity::kInfo:
      return "info";
    case Severity::kWarning:
      return "warning";
    case Severity::kError:
      return "error";
  }
  return "";
}

const std::vector<LintRule>& lint_rules() {
  using enum Severity;
  static const std::vector<LintRule> rules = {
      {"EK101", kInfo, "a bias in front of a norm",
       "The norm subtracts the mean of every channel, and with it any constant that the layer in front adds. In "
       "training that bias gets no "
       "gradient but rounding noise, its place in the optimizer is wasted, and weight decay moves it about; beta does "
       "its work.",
       "train without it (bias = False); `evenkeel fold` takes it in exactly"},
      {"EK102", kWarning, "variance at or below eps",
       "These channels were almost constant when the statistics were made: 1/sqrt(variance + eps) is decided by eps, "
       "not by the data. Most are "
       "dead, killed by weight decay or by a ReLU in front. Should they wake up on other data, they are scaled by up "
       "to 1/sqrt(eps).",
       "prune them, or compare with statistics made anew (`evenkeel recalibrate`); do not make eps smaller"},
      {"EK103", kWarning, "denormal variance",
       "The number is below the smallest normal float (1.2e-38). Processors that flush denormals to zero read another "
       "number than those that "
       "do not, and arithmetic on it can be a hundred times slower.",
       "set it to 0: with eps added the result is the same; `evenkeel recalibrate` makes it anew"},
      {"EK104", kWarning, "variance of exactly 0",
       "The channel had one and the same value everywhere: its filter is all zero, or its ReLU never opened.",
       "prune the channel, or find out why it is dead"},
      {"EK105", kError, "negative variance",
       "No average of squares is negative: the file is damaged, was averaged with negative weights, or its variance "
       "was computed as E[x^2] - "
       "E[x]^2 in too few digits. The square root of variance + eps is NaN as soon as it is below -eps.",
       "make the statistics anew (`evenkeel recalibrate`)"},
      {"EK106", kError, "a value that is not finite",
       "One infinite activation, or a loss that overflowed, stays in a running average for ever; NaN in gamma or beta "
       "comes from a diverged "
       "run. Every output of the channel is NaN or infinite.",
       "make the statistics anew (`evenkeel recalibrate`); gamma or beta: go back to an earlier checkpoint"},
      {"EK107", kInfo, "gamma near 0",
       "|gamma| is below 0.001: whatever comes in, the channel gives its beta. Usual with weight decay on gamma, and "
       "at the start of training "
       "where the last norm of a residual block begins at 0.",
       "prune the channels (their beta can be folded into what follows), or exclude gamma from weight decay"},
      {"EK108", kError, "statistics that were never updated",
       "Mean 0 and variance 1 are what a norm starts with, but its gamma and beta, or those of other norms, are "
       "trained: the model was trained "
       "with the updates switched off (momentum 0, frozen, training=True at every call), or the statistics were not "
       "saved. In inference the "
       "norm does nothing, and the network sees other activations than it was trained with.",
       "make the statistics from training data: `evenkeel recalibrate MODEL --data D`"},
      {"EK109", kWarning, "statistics updated too few times",
       "After t batches of weight w a share of (1-w)^t of the running average is still its start value, mean 0 and "
       "variance 1; here it is more "
       "than 5 %.",
       "make them from training data (`evenkeel recalibrate`), or train longer, with a larger weight or "
       "--bias-corrected"},
      {"EK110", kWarning, "folded scales spread wide",
       "gamma / sqrt(variance + eps) multiplies the weights of its channel when the norm is folded. Where the channels "
       "then differ much in size, "
       "quantization with one step for the whole tensor (int8 per tensor) leaves the small ones a few steps: less than "
       "8 of 127 here in more "
       "than a tenth of the live channels.",
       "quantize per channel, or equalize the channels first; prune channels of EK102 and EK107"},
      {"EK111", kWarning, "too large for float16",
       "A number of the norm, or of the weights that it is folded into, is above 65504 and becomes infinite in "
       "float16.",
       "keep this layer in float32 or bfloat16, or make the statistics anew if they are wrong"},
      {"EK112", kError, "training mode left on",
       "The node normalizes by the statistics of whatever batch it gets: answers for an example depend on its "
       "neighbours, a batch of one is "
       "normalized by itself, and the stored statistics are not used.",
       "export in evaluation mode, or `evenkeel fold --force-inference`; training_mode must be 0 (opset 14 and later), "
       "and there must be one "
       "output (7 to 13), is_test 1 (6 and earlier)"},
      {"EK113", kWarning, "two norms share their statistics",
       "The same running mean normalizes two streams of data, and in training both update it: the average fits "
       "neither, unless the streams "
       "are alike.",
       "give each stream statistics of its own (gamma and beta may be shared); then `evenkeel recalibrate`"},
      {"EK114", kInfo, "a norm fed by two producers",
       "Its input is a sum or a concatenation: the statistics are those of the mixture, and it cannot be folded into "
       "either producer.",
       "nothing, where the network is meant so (pre-activation, dense blocks)"},
      {"EK115", kInfo, "a norm in front of a zero-padded convolution",
       "Folded forward, the shift of the norm would have to be in the padding, too: behind the norm a border of zeros "
       "stands for 0, in front of "
       "it for something else. Such a norm stays when it cannot be folded backward.",
       "nothing, unless the norm has to go: pad with -shift/scale of every channel, or put the norm behind the "
       "convolution"},
      {"EK116", kWarning, "one value per channel",
       "The file fixes batch and extents so that the norm sees one value per channel: by the statistics of the batch "
       "every output would be beta. "
       "It can be used for inference, not trained or run with batch statistics.",
       "leave the batch open (a symbolic first extent), or train with larger batches"},
      {"EK117", kInfo, "parameters computed at run time",
       "The norm gets gamma, beta, mean or variance from other nodes: nothing is known about them here.",
       "constant folding in the exporter, or onnxsim, may turn them into constants"},
      {"EK118", kWarning, "stored and actual statistics differ",
       "On the given data the norm's input has another mean or variance than what is stored: by more than half a "
       "stored deviation, or by a "
       "factor of 2 in the variance, over the channels.",
       "`evenkeel recalibrate MODEL --data D`, if this is the data that the model is to be used on"},
      {"EK119", kWarning, "the preprocessing looks different",
       "The first norms are the furthest from their stored statistics: the inputs themselves differ from those of the "
       "training. The usual "
       "reasons: another scale (0..255 against 0..1), no standardization or another, RGB against BGR, another layout.",
       "compare the preprocessing with the training's before anything else; recalibration would hide the mistake"},
      {"EK120", kInfo, "channels that are constant on the data",
       "Over all given examples the variance of what comes into these channels is 0 or next to nothing: dead on this "
       "data.",
       "with enough data: prune them"},
      {"EK121", kWarning, "accuracy depends on the statistics",
       "With the statistics of the batch the model is clearly more accurate than with the stored ones: these do not "
       "fit the data.",
       "`evenkeel recalibrate MODEL --data D`, or look for the difference in the preprocessing"},
      {"EK122", kError, "a norm without stored statistics",
       "The node normalizes by the statistics of whatever batch it gets, and the file holds no others: the layer was "
       "made without running statistics (track_running_stats=False in PyTorch). Answers for an example depend on its "
       "neighbours, and a batch of one is normalized by itself. There is nothing that `evenkeel fold "
       "--force-inference` could put in their place.",
       "give the layer running statistics (track_running_stats=True), make them by running training data through the "
       "model in training mode, and export it again in evaluation mode"},
      {"EK123", kError, "an impossible eps",
       "eps is added to the variance under the square root: it is a small positive number, 1e-5 or 1e-3 in most "
       "libraries. With one below 0 the root is NaN wherever the variance is smaller than that, with NaN or infinity "
       "every output is NaN or beta: the file is damaged, or whatever wrote it made a mistake.",
       "set eps to what the network was trained with, and export it again"},
      {"EK124", kWarning, "an unusual eps",
       "eps is 0, so that a channel of variance 0 gives infinity or NaN, or it is 100 times larger or smaller than in "
       "more than half of the norms: a layer of other origin, or a slip. A wrong eps changes channels of small "
       "variance most.",
       "compare it with what the network was trained with"},
      {"EK125", kError, "parts of a norm are missing",
       "In a state dict one of running_mean and running_var is there without the other; in an ONNX model the norm "
       "reads "
       "a value that no node makes and that is neither an input nor a constant. The file is incomplete, or a name was "
       "changed on one side only: such a model cannot be run.",
       "write the file again with all tensors of the norm, or mend the names"},
      {"EK126", kError, "channels that do not fit",
       "The layer in front makes another number of channels than the norm has parameters for: such a model cannot be "
       "run.",
       "look for parameters of another norm, or of another version of the network, and export it again"},
  };
  return rules;
}

const LintRule& lint_rule(const std::string& code) {
  const auto& rules = lint_rules();
  std::string upper = code;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; });
  const auto found = std::find_if(rules.begin(), rules.end(), [&](const LintRule& rule) { return rule.code == upper; });
  if (found != rules.end()) return *found;
  throw UsageError(fmt::format("there is no finding '{}'; the codes are {} to {}, and `evenkeel explain` lists them",
                               code, rules.front().code, rules.back().code));
}

}  // namespace evenkeel::tools
