// What recalibration needs of a model, for models of ours and ONNX models alike.
#pragma once

#include <nlohmann/json.hpp>

#include <memory>
#include <string>
#include <vector>

#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/inference_mode.h"
#include "evenkeel/train/adapt.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::tools {

class RecalibratedModel {
 public:
  virtual ~RecalibratedModel() = default;
  // Classes, standardization and settings of the training, as far as they are known; an ONNX model has no tensors there.
  virtual Model& shell() = 0;
  virtual void bind(const Asked& asked, const Shape& example) = 0;
  virtual data::Dataset take(data::Splits& splits, const std::string& split, const Asked& asked) = 0;
  virtual bool classifies() const = 0;
  virtual std::string unsupported() const = 0;  // an operator that cannot be run, or ""
  virtual std::vector<ChannelStatistics> statistics() const = 0;
  virtual std::vector<NormDistance> moved(const std::vector<ChannelStatistics>& from) const = 0;
  virtual EvalResult evaluate(const data::Dataset& dataset, const EvalSettings& settings) = 0;
  virtual StatisticsWork recompute(const data::Dataset& dataset, const StatisticsSettings& settings) = 0;
  virtual void require_adaptable() const = 0;  // throws BackendError
  virtual AdaptWork adapt(const data::Dataset& dataset, const AdaptSettings& settings) = 0;
  virtual std::vector<NormAffine> affine() const = 0;
  virtual void assign(const std::vector<NormAffine>& affine) = 0;
  virtual void assign(const std::vector<ChannelStatistics>& statistics) = 0;
  // The text of statistics from before, in the model's metadata; "" takes it away.
  virtual std::string before() const = 0;
  virtual void keep_before(const std::string& text) = 0;
  virtual std::string words() const = 0;  // how its running statistics are made
  virtual nlohmann::ordered_json json() const = 0;
  virtual bool biased() const = 0;
  virtual void save(const std::string& path) const = 0;
  virtual std::string default_out(const std::string& path) const = 0;
  // Whether the file holds this model, recalibrated: all but its norms is the same, and it says that it had these statistics before.
  virtual bool is_source_of(const std::string& path) const = 0;
  // New statistics are to be used: norms in training mode normalize by them from here on.
  virtual EndedTraining end_training() = 0;
  virtual const Model* own() const { return nullptr; }  // of ours; null: ONNX

 protected:
  RecalibratedModel() = default;
  RecalibratedModel(const RecalibratedModel&) = default;
  RecalibratedModel& operator=(const RecalibratedModel&) = default;
};

// By the kind of asked.model. Throws UsageError: no batch norm with statistics of its own, or `out` has another format than what is written.
std::unique_ptr<RecalibratedModel> load_recalibrated(const Asked& asked, const std::string& out);

}  // namespace evenkeel::tools
