#include "evenkeel/train/trainer.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>

#include <fmt/format.h>

#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/run_folder.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/version.h"

namespace evenkeel {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The first n examples of a data set, in place.
void truncate(data::Dataset& dataset, int64_t n) {
  if (dataset.count <= n) return;
  Shape shape = dataset.values.shape();
  shape[0] = n;
  Tensor values(dataset.values.dtype(), shape);
  std::memcpy(values.raw(), dataset.values.raw(), values.bytes());
  dataset.values = std::move(values);
  dataset.labels.resize(static_cast<size_t>(n));
  dataset.count = n;
}

ModelSpec resolve_spec(const TrainSettings& s, const data::Splits& splits) {
  const Shape& input = splits.train.example_shape;
  const int64_t classes = splits.train.class_count();
  ModelSpec spec = find_model(s.model, input, classes);
  if (spec.input != input) {
    throw UsageError("model '" + s.model + "' is made for inputs of " + to_string(spec.input) + ", but data '" +
                     s.data + "' has " + to_string(input));
  }
  if (spec.classes < classes) {
    throw UsageError("model '" + s.model + "' has " + std::to_string(spec.classes) + " classes, but data '" + s.data +
                     "' has " + std::to_string(classes));
  }
  if (s.norm) spec.norm = *s.norm;
  if (s.placement) spec.placement = *s.placement;
  if (s.activation) spec.activation = *s.activation;
  if (s.init) spec.init = *s.init;
  if (s.init_sigma) spec.init_sigma = *s.init_sigma;
  if (s.zero_gamma) spec.zero_gamma = *s.zero_gamma;
  if (s.label_smoothing) spec.label_smoothing = *s.label_smoothing;
  if (s.loss) spec.loss = *s.loss;
  if (s.eps) spec.norm_options.eps = *s.eps;
  if (s.new_batch_weight) spec.norm_options.new_batch_weight = *s.new_batch_weight;
  if (s.biased) spec.norm_options.biased = *s.biased;
  if (s.bias_corrected) spec.norm_options.bias_corrected = *s.bias_corrected;
  return spec;
}

void require_sound(const TrainSettings& s) {
  if (s.epochs < 1) throw UsageError("the number of epochs must be at least 1, found " + std::to_string(s.epochs));
  if (s.batch_size < 1) throw UsageError("the batch size must be at least 1, found " + std::to_string(s.batch_size));
  if (!(s.learning_rate > 0) || !std::isfinite(s.learning_rate)) {
    throw UsageError(fmt::format("the learning rate must be positive and finite, found {}", s.learning_rate));
  }
  if (s.max_steps < 0 || s.overfit < 0 || s.threads < 0) {
    throw UsageError("max-steps, overfit and threads must not be negative");
  }
}

// One training run from its data to its model.
class Run {
 public:
  Run(const TrainSettings& settings, const TrainObserver& observer)
      : settings_(settings),
        observer_(observer),
        threads_(settings.threads > 0 ? settings.threads : available_cores()) {}

  TrainResult run() {
    const double start = now_s();
    prepare();
    if (settings_.dry_run) return dry_run();
    open_folder();
    log_start();
    TrainResult result = loop();
    finish(result, now_s() - start);
    return result;
  }

 private:
  void note(const std::string& text) const {
    if (observer_.note) observer_.note(text);
  }
  bool stop_asked() const { return observer_.stop != nullptr && observer_.stop->load(); }

  // Data, network, plans: everything that can be wrong is found here, before a folder is made.
  void prepare() {
    require_sound(settings_);
    data::LoadOptions load = settings_.load;
    load.seed = settings_.seed;
    splits_ = data::load(settings_.data, load);
    if (settings_.overfit > 0) {
      for (data::Dataset* split : {&splits_.train, &splits_.validation, &splits_.test})
        truncate(*split, settings_.overfit);
    }
    if (splits_.train.count < 1) throw UsageError("data '" + settings_.data + "' has no training examples");
    model_.spec = resolve_spec(settings_, splits_);
    model_.standardization = data::standardization_of(splits_.train, threads_);
    model_.class_names = splits_.train.class_names;
    model_.data_name = splits_.train.name;
    model_.training = settings_map(settings_);
    compile();
    evaluator_ = std::make_unique<Evaluator>(model_.spec, model_.store, EvalSettings{.threads = threads_});
    reader_ = std::make_unique<data::BatchReader>(splits_.train, model_.standardization, settings_.augment,
                                                  data::Corrupt{}, settings_.seed);
    const auto largest = static_cast<size_t>(cut_.largest());
    x_ = allocate_aligned(largest * static_cast<size_t>(reader_->example_size()) * sizeof(float));
    labels_.resize(largest);
  }

  void compile() {
    Network network = build_network(model_.spec, Mode::kTrain);
    for (const std::string& warning : network.warnings) note("warning: " + warning);
    const int64_t smallest = smallest_batch(network.graph);
    cut_ = cut_batches(splits_.train.count, settings_.batch_size, settings_.last_batch, smallest);
    initialize(network, settings_.seed, &model_.store);
    std::vector<StateInfo> states;
    Graph graph =
        with_updates(with_gradients(std::move(network.graph)), settings_.optimizer, network.parameters, &states);
    for (const StateInfo& state : states) model_.store.add(state.name, Tensor(DType::kF32, state.shape));
    if (cut_.sizes.empty())
      throw UsageError("the training set is smaller than a batch and --last-batch drop leaves nothing to train on");
    Plan plan = make_plan(std::move(graph), {.batch = cut_.largest()});
    // An only batch can still be too small for the norms; make_plan has refused it if so. A *last* one is checked here.
    (void)smallest;
    parameters_ = plan.parameter_count;
    executable_ = cpu_backend(threads_)->compile(std::move(plan), model_.store);
    if (!cut_.last_uses_running) return;
    Network frozen = build_network(model_.spec, Mode::kTrainRunningStatistics);
    std::vector<StateInfo> same_states;
    Graph frozen_graph =
        with_updates(with_gradients(std::move(frozen.graph)), settings_.optimizer, frozen.parameters, &same_states);
    last_executable_ =
        cpu_backend(threads_)->compile(make_plan(std::move(frozen_graph), {.batch = cut_.sizes.back()}), model_.store);
  }

  TrainResult dry_run() {
    order_ = data::epoch_order(splits_.train.count, settings_.seed, 1);
    state_.epoch = 1;
    const RunArguments arguments = read_batch(0, cut_.sizes[0]);
    TrainResult result;
    result.status = executable_->run(arguments).finite ? "finished" : "not finite";
    result.train_loss = executable_->scalar("loss");
    result.parameters = parameters_;
    data::Dataset few = std::move(splits_.test);
    truncate(few, settings_.batch_size);
    if (few.count > 0) {
      const EvalResult eval = evaluator_->run(few, model_.standardization);
      result.test_loss = eval.loss;
      result.test_accuracy = eval.accuracy;
    }
    result.steps = 1;
    result.peak_memory_bytes = peak_memory_bytes();
    return result;
  }

  void open_folder() {
    folder_.emplace(settings_.out.empty() ? RunFolder::create_numbered("runs", settings_.model)
                                          : RunFolder::create_or_resume(settings_.out, settings_.resume));
    if (settings_.resume) resume();
    size_t bytes = 0;
    for (const auto& [name, tensor] : model_.store.tensors()) bytes += tensor.bytes();
    folder_->require_free_bytes(4 * bytes + (size_t{1} << 20));  // two checkpoints, one being written, the model
    if (state_.step == 0) save_checkpoint();  // also finds out that nothing can be written before any work is done
  }

  void resume() {
    LatestCheckpoint latest = folder_->latest_checkpoint();
    if (!latest.note.empty()) note(latest.note);
    if (!latest.found) {
      note("there is no checkpoint in " + folder_->dir() + " to resume from: starting from the beginning");
      cut_log(folder_->log_path(), -1);
      return;
    }
    state_ = restore_checkpoint(latest.found->state, latest.found->path, model_.training, model_.store);
    cut_log(folder_->log_path(), state_.step);
    note(fmt::format("resuming {} at epoch {}, step {}", folder_->dir(), state_.epoch, state_.step));
  }

  void log_start() {
    log_.emplace(folder_->log_path());
    RunStart start;
    start.step = state_.step;
    start.unix_time_s = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    start.model = model_.spec.name;
    start.data = settings_.data;
    start.parameters = parameters_;
    start.train_examples = splits_.train.count;
    start.test_examples = splits_.test.count;
    start.versions["evenkeel"] = version();
    start.settings = model_.training;
    start.settings["threads"] = std::to_string(threads_);
    log_->append(start);
  }

  int64_t steps_per_epoch() const { return static_cast<int64_t>(cut_.sizes.size()); }
  int64_t scheduled_steps() const { return settings_.epochs * steps_per_epoch(); }
  int64_t total_steps() const {
    return settings_.max_steps > 0 ? std::min(settings_.max_steps, scheduled_steps()) : scheduled_steps();
  }

  Schedule schedule() const {
    const auto steps = [&](double epochs) {
      return static_cast<int64_t>(std::llround(epochs * static_cast<double>(steps_per_epoch())));
    };
    Schedule schedule;
    schedule.kind = settings_.schedule;
    schedule.learning_rate = settings_.learning_rate;
    schedule.total_steps = scheduled_steps();
    schedule.warmup_steps = steps(settings_.warmup_epochs);
    schedule.step_every = std::max<int64_t>(1, steps(settings_.step_epochs));
    schedule.factor = settings_.step_factor;
    return schedule;
  }

  // Examples [first, first + n) of this epoch's order, read into the batch buffers.
  RunArguments read_batch(int64_t first, int64_t n) {
    const std::span<const int64_t> indices(order_.data() + first, static_cast<size_t>(n));
    auto* x = reinterpret_cast<float*>(x_.get());
    reader_->read(indices, static_cast<uint64_t>(state_.epoch), threads_, x, labels_.data());
    return {.x = x,
            .labels = labels_.data(),
            .n = n,
            .learning_rate = learning_rate_at(schedule(), state_.step),
            .step = state_.updates + 1,
            .seed = settings_.seed,
            .epoch = static_cast<uint64_t>(state_.epoch),
            .example_indices = indices.data()};
  }

  TrainResult loop() {
    TrainResult result;
    result.status = "finished";
    last_checkpoint_s_ = now_s();
    while (state_.step < total_steps()) {
      if (state_.epoch == 0 || state_.batch == steps_per_epoch()) begin_epoch();
      if (order_.empty())
        order_ = data::epoch_order(splits_.train.count, settings_.seed, static_cast<uint64_t>(state_.epoch));
      if (!train_step(result)) return result;
      if (state_.batch == steps_per_epoch() || state_.step == total_steps()) end_epoch();
      if (stop_asked() && state_.step < total_steps()) {
        result.status = "interrupted";
        save_checkpoint();
        return result;
      }
      if (now_s() - last_checkpoint_s_ >= settings_.checkpoint_every_s && settings_.checkpoint_every_s > 0)
        save_checkpoint();
    }
    return result;
  }

  void begin_epoch() {
    ++state_.epoch;
    state_.batch = 0;
    state_.first_example = 0;
    state_.sums = {};
    order_.clear();
  }

  // False when the run ends here: `result` says why.
  bool train_step(TrainResult& result) {
    const int64_t n = cut_.sizes[static_cast<size_t>(state_.batch)];
    const bool running = cut_.last_uses_running && state_.batch == steps_per_epoch() - 1;
    Executable& executable = running ? *last_executable_ : *executable_;
    const double start = now_s();
    const RunArguments arguments = read_batch(state_.first_example, n);
    const RunResult run = executable.run(arguments);
    const double seconds = now_s() - start;
    ++state_.step;
    ++state_.batch;
    state_.first_example += n;
    const double loss = executable.scalar("loss");
    if (run.finite) {
      ++state_.updates;
      state_.sums.loss += loss * static_cast<double>(n);
      state_.sums.correct += executable.scalar("correct");
      state_.sums.examples += n;
    } else if (settings_.on_nonfinite == OnNonfinite::kStop) {
      return stop_not_finite(result, executable.first_nonfinite(arguments));
    } else {
      ++state_.sums.refused;
    }
    step_seconds_ += seconds;
    step_examples_ += n;
    epoch_seconds_ += seconds;
    epoch_examples_ += n;
    log_->append(StepRecord{.step = state_.step,
                            .epoch = state_.epoch,
                            .loss = loss,
                            .learning_rate = arguments.learning_rate,
                            .images_per_s = static_cast<double>(n) / seconds,
                            .examples = n});
    report_progress(arguments.learning_rate);
    return true;
  }

  bool stop_not_finite(TrainResult& result, const std::string& tensor) {
    result.status = "not finite";
    result.message =
        fmt::format("training stopped at step {} (epoch {}): {} is not finite; nothing was updated by that step{}",
                    state_.step, state_.epoch, tensor.empty() ? "a gradient" : tensor,
                    "; try a smaller --learning-rate, --clip-norm 1 or --warmup-epochs 1");
    return false;
  }

  void report_progress(double learning_rate) {
    if (!observer_.progress) return;
    Progress p;
    p.epoch = state_.epoch;
    p.epochs = settings_.epochs;
    p.step = state_.step;
    p.steps = total_steps();
    p.step_in_epoch = state_.batch;
    p.steps_per_epoch = steps_per_epoch();
    const double examples = std::max<double>(1, static_cast<double>(state_.sums.examples));
    p.loss = state_.sums.loss / examples;
    p.accuracy = state_.sums.correct / examples;
    p.learning_rate = learning_rate;
    p.images_per_s = epoch_seconds_ > 0 ? static_cast<double>(epoch_examples_) / epoch_seconds_ : 0;
    const double step_s = epoch_seconds_ * static_cast<double>(settings_.batch_size) /
                          std::max<double>(1, static_cast<double>(epoch_examples_));
    p.seconds_left = static_cast<double>(total_steps() - state_.step) * step_s;
    observer_.progress(p);
  }

  void end_epoch() {
    EpochSummary s;
    s.epoch = state_.epoch;
    s.epochs = settings_.epochs;
    const double examples = std::max<double>(1, static_cast<double>(state_.sums.examples));
    s.train_loss = state_.sums.loss / examples;
    s.train_accuracy = state_.sums.correct / examples;
    if (splits_.test.count > 0) {
      const EvalResult test = evaluator_->run(splits_.test, model_.standardization);
      s.test_loss = test.loss;
      s.test_accuracy = test.accuracy;
    }
    if (splits_.validation.count > 0) {
      const EvalResult validation = evaluator_->run(splits_.validation, model_.standardization);
      s.validation_loss = validation.loss;
      s.validation_accuracy = validation.accuracy;
    }
    s.seconds = epoch_seconds_;
    s.images_per_s = epoch_seconds_ > 0 ? static_cast<double>(epoch_examples_) / epoch_seconds_ : 0;
    last_epoch_ = s;
    log_->append(EpochRecord{.epoch = s.epoch,
                             .step = state_.step,
                             .train_loss = s.train_loss,
                             .train_accuracy = s.train_accuracy,
                             .test_loss = s.test_loss,
                             .test_accuracy = s.test_accuracy,
                             .images_per_s = s.images_per_s,
                             .seconds = s.seconds,
                             .refused_batches = state_.sums.refused});
    epoch_seconds_ = 0;
    epoch_examples_ = 0;
    if (observer_.epoch) observer_.epoch(s);
    save_checkpoint();
  }

  // The update of a step can overflow a parameter; the next step's guard would find it, but a checkpoint of it would be no good one.
  bool state_is_finite() const {
    for (const auto& [name, tensor] : model_.store.tensors()) {
      if (tensor.dtype() == DType::kF32 && !kernels::all_finite(tensor.values<float>().data(), tensor.count()))
        return false;
    }
    return true;
  }

  void save_checkpoint() {
    if (!state_is_finite()) return;  // the last good one stays
    const double start = now_s();
    if (log_) log_->sync();
    folder_->save_checkpoint(state_.step, checkpoint_of(state_, model_.training, model_.store));
    last_checkpoint_s_ = now_s();
    if (log_) {
      log_->append(
          CheckpointRecord{.step = state_.step,
                           .epoch = state_.epoch,
                           .file = std::filesystem::path(folder_->checkpoint_path(state_.step)).filename().string(),
                           .seconds = last_checkpoint_s_ - start});
    }
  }

  void finish(TrainResult& result, double seconds) {
    result.epochs = state_.epoch;
    result.steps = state_.step;
    result.parameters = parameters_;
    result.seconds = seconds;
    result.images_per_s = step_seconds_ > 0 ? static_cast<double>(step_examples_) / step_seconds_ : 0;
    result.run_dir = folder_->dir();
    const double examples = std::max<double>(1, static_cast<double>(state_.sums.examples));
    result.train_loss = state_.sums.loss / examples;
    result.train_accuracy = state_.sums.correct / examples;
    if (result.status != "not finite" && state_is_finite()) {
      if (!last_epoch_ && splits_.test.count > 0) {  // resumed after the last epoch, or interrupted within the first
        const EvalResult test = evaluator_->run(splits_.test, model_.standardization);
        result.test_loss = test.loss;
        result.test_accuracy = test.accuracy;
      }
      save_model(folder_->model_path(), model_);
      result.model_path = folder_->model_path();
    }
    if (last_epoch_) {
      result.test_loss = last_epoch_->test_loss.value_or(0);
      result.test_accuracy = last_epoch_->test_accuracy.value_or(0);
    }
    result.peak_memory_bytes = peak_memory_bytes();
    log_->append(EndRecord{.status = result.status,
                           .step = state_.step,
                           .epoch = state_.epoch,
                           .seconds = seconds,
                           .peak_memory_bytes = result.peak_memory_bytes,
                           .message = result.message});
    log_->sync();
  }

  const TrainSettings settings_;
  const TrainObserver& observer_;
  const int threads_;
  data::Splits splits_;
  Model model_;
  BatchCut cut_;
  int64_t parameters_ = 0;
  std::unique_ptr<Executable> executable_, last_executable_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<data::BatchReader> reader_;
  AlignedBytes x_;
  std::vector<int32_t> labels_;
  std::optional<RunFolder> folder_;
  std::optional<RunLogWriter> log_;
  TrainState state_;
  std::vector<int64_t> order_;
  std::optional<EpochSummary> last_epoch_;
  double last_checkpoint_s_ = 0;
  double step_seconds_ = 0, epoch_seconds_ = 0;
  int64_t step_examples_ = 0, epoch_examples_ = 0;
};

}  // namespace

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

TrainResult train(const TrainSettings& settings, const TrainObserver& observer) {
  return Run(settings, observer).run();
}

}  // namespace evenkeel
