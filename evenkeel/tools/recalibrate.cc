#include "evenkeel/tools/recalibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/core/numbers.h"
#include "evenkeel/train/profile.h"
#include "evenkeel/tools/lint_data.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/onnx_statistics.h"
#include "evenkeel/train/estimate.h"

namespace evenkeel::tools {
namespace {

namespace fs = std::filesystem;

// For a second split: what there is to say about preprocessing and classes was said of the first.
Asked in_silence(Asked asked) {
  asked.on_note = nullptr;
  asked.on_warning = nullptr;
  return asked;
}

bool is_worse(const EvalResult& after, const EvalResult& before) {
  constexpr double kSame = 1.05;  // losses that differ by less are one loss
  return after.accuracy < before.accuracy || (after.accuracy == before.accuracy && after.loss > kSame * before.loss);
}

// "91.80 %", as tables show it.
std::string percent(double fraction) { return fmt::format("{:.2f} %", 100 * fraction); }

}  // namespace

Recalibration::Recalibration(const Asked& asked, const RecalibrateAsked& how)
    : asked_(asked), how_(how), model_(load_recalibrated(asked, how.out)) {
  if (how.adapt && !how.undo) model_->require_adaptable();
}

std::string Recalibration::out_path() const {
  if (how_.dry_run) return "";
  const std::string path = model_path_of(asked_);
  std::string out = how_.out.empty() ? model_->default_out(path) : how_.out;
  std::error_code error;
  // Over the model itself only where that was asked for.
  if (how_.out.empty() && fs::equivalent(out, path, error)) {
    throw UsageError(
        fmt::format("the new model would take the place of '{}', which it is made from; give --out FILE", path));
  }
  if (how_.out.empty() && fs::exists(out, error) && !model_->is_source_of(out)) {
    throw UsageError(
        fmt::format("'{}' is there already, and was made from another model than '{}'; give --out FILE", out, path));
  }
  require_writable(out);
  return out;
}

StatisticsSettings Recalibration::settings() const {
  const int64_t trained =
      number_from<int64_t>(setting(model_->shell(), "batch-size")).value_or(StatisticsSettings{}.batch_size);
  return {.kind = how_.kind,
          .biased = how_.biased.value_or(model_->biased()),
          .examples = how_.examples,
          .in_order = how_.in_order,
          .batch_size = how_.batch_size.value_or(std::max<int64_t>(1, trained)),
          .augment = how_.augment,
          .corrupt = asked_.corrupt,
          .seed = seed_of(asked_, model_->shell()),
          .threads = asked_.threads};
}

// On the test set; nothing where it has no labels.
std::optional<EvalResult> Recalibration::tested(const data::Dataset& test) {
  if (test.count == 0 || !model_->classifies()) return {};
  EvalResult result = model_->evaluate(
      test, {.threads = asked_.threads, .corrupt = asked_.corrupt, .seed = seed_of(asked_, model_->shell())});
  if (result.labelled == 0) return {};
  return result;
}

void Recalibration::collect_warnings(Recalibrated& o) const {
  for (const std::string& norm : o.ended.left) {
    o.warnings.push_back(
        fmt::format("norm '{}' stays in training mode, because a node reads the statistics of its batch: it "
                    "does not use the new ones",
                    norm));
  }
  if (o.before && is_worse(*o.after, *o.before)) {
    o.warnings.push_back(
        fmt::format("{} is judged worse with the new statistics: {} after {}, loss {:.4f} after {:.4f}", judged_on_,
                    percent(o.after->accuracy), percent(o.before->accuracy), o.after->loss, o.before->loss));
  }
  if (o.recalibrated && is_worse(*o.after, *o.recalibrated)) {
    o.warnings.push_back(fmt::format(
        "{} is judged worse with the adapted gamma and beta than with the new statistics alone: {} after {}, "
        "loss {:.4f} after {:.4f}",
        judged_on_, percent(o.after->accuracy), percent(o.recalibrated->accuracy), o.after->loss,
        o.recalibrated->loss));
  }
  if (const auto finding = preprocessing_suspicion(o.moved)) {
    o.warnings.push_back(
        fmt::format("your preprocessing looks different from that of training: {}: {} (evenkeel explain {})",
                    finding->norm, finding->reason, finding->code));
  }
}

Undone Recalibration::undo() {
  const std::string text = model_->before();
  if (text.empty()) {
    throw UsageError(fmt::format(
        "'{}' holds no statistics from before: recalibrate did not write it, or they were brought back already",
        asked_.model));
  }
  out_ = out_path();
  const std::vector<ChannelStatistics> now = model_->statistics();
  model_->assign(unpacked(text));
  const std::vector<NormAffine> affine = unpacked_affine(text);
  model_->assign(affine);
  model_->keep_before("");
  return {model_->moved(now), !affine.empty()};
}

void Recalibration::renew(const std::vector<ChannelStatistics>& old, const data::Dataset& dataset, Recalibrated& o) {
  const StatisticsWork work = model_->recompute(dataset, settings());
  o.work = {work.norms, work.examples, o.work.passes + work.passes, o.work.seconds + work.seconds};
  if (how_.blend == 1) return;
  const std::vector<ChannelStatistics> mixed = blended(old, model_->statistics(), how_.blend);
  for (const ChannelStatistics& s : mixed) require_finite(s);
  model_->assign(mixed);
}

void Recalibration::adapt(const std::vector<ChannelStatistics>& old, const data::Dataset& dataset, Recalibrated& o) {
  o.adapted = AdaptSettings{
      .goal = *how_.adapt, .epochs = how_.adapt_epochs, .learning_rate = how_.adapt_rate, .examples = settings()};
  o.adapt_work = model_->adapt(dataset, *o.adapted);
  if (*how_.adapt != AdaptGoal::kEntropy) return;
  // It learned on statistics of its batches: what is stored must be those of the norms as they are now.
  model_->assign(old);
  renew(old, dataset, o);
}

// What the result is judged by: how.test, the test split, or the examples themselves.
const data::Dataset& Recalibration::test_set(data::Splits& splits, const data::Dataset& dataset, data::Dataset& rest,
                                             Recalibrated& o) {
  if (!how_.test.empty()) {
    Asked other = asked_;
    other.data = how_.test;
    other.examples = nullptr;
    data::Splits test_splits = load_splits(other, model_->shell());
    rest = model_->take(test_splits, "test", in_silence(std::move(other)));
    judged_on_ = how_.test;
  } else if (how_.split != "test" && splits.test.count > 0) {
    rest = model_->take(splits, "test", in_silence(asked_));
  }
  if (splits.one_set && how_.test.empty()) judged_on_ = o.judged_on = asked_.examples ? "the data" : "the file";
  const bool on_itself = how_.test.empty() && how_.split == "test";
  return on_itself ? dataset : rest;
}

Recalibrated Recalibration::run() {
  out_ = out_path();
  data::Splits splits = load_splits(asked_, model_->shell(), Labels::kOptional);
  model_->bind(asked_, splits.train.count > 0 ? splits.train.example_shape : splits.test.example_shape);
  const data::Dataset dataset = model_->take(splits, how_.split, asked_);
  Recalibrated o;
  data::Dataset rest;
  const data::Dataset& test = test_set(splits, dataset, rest, o);

  const std::vector<ChannelStatistics> old = model_->statistics();
  o.before = tested(test);
  std::vector<NormAffine> old_affine;  // where it changes
  renew(old, dataset, o);
  if (how_.adapt) {
    old_affine = model_->affine();
    o.recalibrated = tested(test);
    adapt(old, dataset, o);
  }
  model_->keep_before(packed(old, old_affine));
  o.moved = model_->moved(old);
  o.after = tested(test);
  o.ended = model_->end_training();
  collect_warnings(o);
  return o;
}

void Recalibration::save() const {
  if (!out_.empty()) model_->save(out_);
}

}  // namespace evenkeel::tools
