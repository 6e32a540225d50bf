#include "evenkeel/train/trainer.h"

#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "evenkeel/core/parallel.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/recording.h"
#include "evenkeel/train/resolve.h"
#include "evenkeel/train/run_folder.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/train/statistics.h"
#include "evenkeel/version.h"

namespace evenkeel {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

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
    try {
      TrainResult result = loop();
      finish(result, now_s() - start);
      return result;
    } catch (const std::exception& error) {
      log_failure(error.what(), now_s() - start);
      throw;
    }
  }

 private:
  void log_failure(const std::string& message, double seconds) noexcept {
    try {
      log_->append(EndRecord{.status = "failed",
                             .step = state_.step,
                             .epoch = state_.epoch,
                             .seconds = seconds,
                             .peak_memory_bytes = peak_memory_bytes(),
                             .message = message});
    } catch (const std::exception&) {  // the disk is full for the log, too: the first error is the one to tell
    }
  }
  void note(const std::string& text) const {
    if (observer_.note) observer_.note(text);
  }
  bool stop_asked() const { return observer_.stop != nullptr && observer_.stop->load(); }

  // Data, network, plans: everything that can be wrong is found here, before a folder is made.
  void prepare() {
    require_sound(settings_);
    if (!settings_.profile.empty()) require_writable(settings_.profile);
    data::LoadOptions load = settings_.load;
    load.seed = settings_.seed;
    if (!settings_.from.empty()) {
      from_ = load_model(settings_.from);
      load.feature_names = from_->feature_names;
    }
    splits_ = data::load(settings_.data, load);
    data::require_learnable(splits_.train);
    if (settings_.overfit > 0) {
      for (data::Dataset* split : {&splits_.train, &splits_.validation, &splits_.test})
        *split = data::first_examples(*split, settings_.overfit);
    }
    if (splits_.train.count < 1) throw UsageError("data '" + settings_.data + "' has no training examples");
    model_.spec = resolve_spec(settings_, splits_);
    for (size_t i = 0; i < splits_.train.labels.size(); ++i) {
      if (splits_.train.labels[i] < 0 || splits_.train.labels[i] >= model_.spec.classes) {
        throw UsageError(fmt::format("training example {} of '{}' has label {}, but the network has {} classes", i,
                                     settings_.data, splits_.train.labels[i], model_.spec.classes));
      }
    }
    // A network that was trained before expects the inputs it was trained on.
    const bool same_inputs = from_ && from_->spec.input == model_.spec.input;
    if (same_inputs) {
      for (data::Dataset* split : {&splits_.train, &splits_.validation, &splits_.test})
        data::fit_to(*split, from_->input_range);
    }
    model_.standardization = same_inputs ? from_->standardization : data::standardization_of(splits_.train, threads_);
    model_.input_range = data::range_of(splits_.train, threads_);
    model_.feature_names = splits_.train.feature_names;
    model_.class_names = splits_.train.class_names;
    model_.data_name = splits_.train.name;
    model_.training = settings_map(settings_);
    if (!passes_at_end()) {
      const bool by_file =
          model_.spec.norm_options.cumulative && settings_.running_statistics == RunningStatistics::kEma;
      model_.running_statistics = name_of(by_file ? RunningStatistics::kCumulative : settings_.running_statistics);
    }
    compile();
    evaluator_ = evaluator_of(model_);
    if (settings_.record_layers > 0) {
      recorder_ = std::make_unique<LayerRecorder>(
          model_.spec, model_.store, splits_.train, model_.standardization,
          LayerRecorderSettings{.batch_size = settings_.batch_size, .seed = settings_.seed, .threads = threads_});
    }
    reader_ = std::make_unique<data::BatchReader>(splits_.train, model_.standardization, settings_.augment,
                                                  data::Corrupt{}, settings_.seed);
    const auto largest = static_cast<size_t>(cut_.largest());
    x_ = allocate_aligned(largest * static_cast<size_t>(reader_->example_size()) * sizeof(float));
    labels_.resize(largest);
    if (is_weighted()) weights_.resize(largest);
  }

  bool is_weighted() const { return !splits_.train.weights.empty(); }
  BuildOptions build_options() const { return {.with_weights = is_weighted()}; }

  // Weights count examples: where those of a batch come to no more than one, its unbiased variance is that of one example.
  void require_heavy_enough(const Graph& graph) const {
    const bool unbiased = std::any_of(graph.nodes.begin(), graph.nodes.end(), [](const Node& node) {
      const auto* update = std::get_if<UpdateRunning>(&node.op);
      return update != nullptr && !update->biased;
    });
    if (!is_weighted() || !unbiased) return;
    const double mean = weight_of(splits_.train.weights) / static_cast<double>(splits_.train.count);
    const double batch = mean * static_cast<double>(cut_.sizes.front());
    if (batch > 1) return;
    throw UsageError(fmt::format(
        "the weights of '{}' are {:.3g} on average, so that those of a batch of {} add up to about {:.3g}; a "
        "weight of k counts as k examples, and statistics of a batch need more than one: multiply the "
        "weights by a number that makes them about 1, or give --running-variance biased",
        settings_.load.weight_column, mean, cut_.sizes.front(), batch));
  }

  static double weight_of(std::span<const float> weights) {
    return std::accumulate(weights.begin(), weights.end(), 0.0,
                           [](double sum, float w) { return sum + static_cast<double>(w); });
  }

  std::unique_ptr<Evaluator> evaluator_of(Model& model) const {
    const int64_t batch = std::clamp<int64_t>(settings_.batch_size, 8, 256);
    return std::make_unique<Evaluator>(
        model.spec, model.store, EvalSettings{.batch_size = batch, .threads = threads_, .weighted = is_weighted()});
  }

  // The graph of a training step, with everything that it leaves in the store on first sight.
  Graph step_graph(Network network, std::vector<StateInfo>* states) const {
    Graph graph =
        with_updates(with_gradients(std::move(network.graph)), settings_.optimizer, network.parameters, states);
    if (settings_.average.any()) graph = with_averages(std::move(graph), states);
    return with_precision(std::move(graph), precision_);
  }

  void compile() {
    const Network network = build_network(model_.spec, Mode::kTrain, build_options());
    for (const std::string& warning : network.warnings) note("warning: " + warning);
    cut_ = cut_batches(splits_.train.count, settings_.batch_size, settings_.last_batch, smallest_batch(network.graph));
    if (cut_.sizes.empty()) {
      throw UsageError("the training set is smaller than a batch and --last-batch drop leaves nothing to train on");
    }
    require_heavy_enough(network.graph);
    initialize(network, settings_.seed, &model_.store);
    if (!settings_.from.empty()) take_weights(network);
    note_about_renorm(network);
    if (settings_.precision == Precision::kBF16) {
      if (!cpu_has_bf16()) {
        note("this processor has no bf16 products: training in fp32");
      } else {
        try {
          return compile_plans(network, Precision::kBF16);
        } catch (const BackendError& error) {  // this network has an op that oneDNN has in fp32 only
          note(fmt::format("training in fp32, since it cannot be done in bf16: {}", error.what()));
        }
      }
    }
    compile_plans(network, Precision::kF32);
  }

  // Values of the model that the run starts from, where names and shapes agree.
  void take_weights(const Network& network) {
    std::vector<std::string> left;
    const auto take = [&](const std::string& name) {
      const bool there = from_->store.contains(name);
      if (there && from_->store.at(name).shape() == model_.store.at(name).shape()) {
        model_.store.writable(name) = from_->store.at(name).clone();
      } else {
        left.push_back(name);
      }
    };
    const std::set<std::string> head = same_classes() ? std::set<std::string>() : head_of(network.graph);
    for (const ParameterInfo& info : network.parameters) {
      if (head.count(info.name) > 0) {
        left.push_back(info.name);
      } else {
        take(info.name);
      }
    }
    for (const BufferInfo& info : network.buffers) take(info.name);
    take_statistics(network.graph);
    const size_t all = network.parameters.size() + network.buffers.size();
    if (left.size() == all) {
      throw UsageError(fmt::format(
          "--from '{}': none of its tensors has the name and the shape of one of this network's; is --model "
          "the same network?",
          settings_.from));
    }
    if (left.empty()) return;
    note(fmt::format(
        "{} of {} tensors start anew, since '{}' has them for other classes, in another shape, or not at all: {}",
        left.size(), all, settings_.from, fmt::join(left, ", ")));
  }

  // The outputs of a network mean its classes, in their order.
  bool same_classes() const { return from_->class_names == model_.class_names; }

  // Parameters of the layer that makes the logits.
  static std::set<std::string> head_of(const Graph& graph) {
    ValueId id = graph.find("logits");
    for (auto node = graph.nodes.rbegin(); node != graph.nodes.rend(); ++node) {
      if (node->outputs.empty() || node->outputs[0] != id) continue;
      std::set<std::string> names;
      for (const ValueId input : node->inputs) {
        if (input != kNoValue && graph.value(input).role == Role::kParameter) names.insert(graph.value(input).name);
      }
      if (!names.empty()) return names;
      id = node->inputs[0];
    }
    return {};
  }

  // Running statistics as the other model reads them, with its start-up error divided out; an average over this run counts from 0.
  void take_statistics(const Graph& graph) {
    for (const ChannelStatistics& held : running_statistics_of(from_->spec, from_->store)) {
      const std::string mean = held.name + ".running_mean", var = held.name + ".running_var";
      if (!model_.store.contains(mean) || model_.store.at(mean).count() != static_cast<int64_t>(held.mean.size()))
        continue;
      const auto assign = [](const std::vector<double>& values, Tensor& tensor) {
        std::transform(values.begin(), values.end(), tensor.values<float>().begin(),
                       [](double value) { return static_cast<float>(value); });
      };
      assign(held.mean, model_.store.writable(mean));
      assign(held.var, model_.store.writable(var));
    }
    for (const Node& node : graph.nodes) {
      const auto* update = std::get_if<UpdateRunning>(&node.op);
      if (update != nullptr && update->cumulative)
        model_.store.writable(graph.value(node.inputs[3]).name).values<int64_t>()[0] = 0;
    }
  }

  void note_about_renorm(const Network& network) const {
    for (const Node& node : network.graph.nodes) {
      const auto* renorm = std::get_if<RenormScale>(&node.op);
      if (renorm == nullptr || total_steps() > renorm->hold) continue;
      return note(fmt::format(
          "warning: batch renormalization stays plain batch norm for its first {} steps, and the run has {}; "
          "give --renorm-schedule",
          renorm->hold, total_steps()));
    }
  }

  void compile_plans(const Network& network, Precision precision) {
    executable_.reset();  // of an attempt in another precision
    last_executable_.reset();
    precision_ = precision;
    std::vector<StateInfo> states;
    norms_.clear();
    const Graph graph = with_named_moments(step_graph(network, &states), &norms_);
    for (const StateInfo& state : states) {
      if (!model_.store.contains(state.name)) model_.store.add(state.name, Tensor(DType::kF32, state.shape));
    }
    const std::unique_ptr<Backend> backend = cpu_backend(threads_, settings_.spill);
    executable_ = backend->compile(make_plan(graph, plan_options(cut_.sizes.front())), model_.store);
    parameters_ = executable_->plan().parameter_count;
    note_spilling(executable_->plan());
    // A last batch that others joined, or that runs through the running statistics, has a plan of its own: the work of a step goes by
    // the plan's batch, and the others need not pay for it.
    if (!cut_.last_uses_running && cut_.sizes.back() <= cut_.sizes.front()) return;
    Graph last = graph;
    if (cut_.last_uses_running)
      last = step_graph(build_network(model_.spec, Mode::kTrainRunningStatistics, build_options()), &states);
    last_executable_ = backend->compile(make_plan(std::move(last), plan_options(cut_.sizes.back())), model_.store);
  }

  PlanOptions plan_options(int64_t batch) const {
    return {.batch = batch,
            .memory_bytes = settings_.memory_bytes,
            .threads = threads_,
            .micro_batch = settings_.micro_batch,
            .spill = !settings_.spill.empty()};
  }

  void note_spilling(const Plan& plan) const {
    if (settings_.spill.empty()) return;
    if (plan.spill_bytes == 0) return note("a step fits in its memory: nothing is spilled");
    constexpr size_t kMega = size_t{1} << 20;
    note(fmt::format("{} values of a step, {} MiB, are kept in a file in {}",
                     std::count(plan.spilled.begin(), plan.spilled.end(), true), (plan.spill_bytes + kMega - 1) / kMega,
                     settings_.spill));
  }

  // What a checkpoint must agree on. The fingerprint of the data: counts, classes, labels and the standardization, which every value
  // has a part in.
  RunIdentity identity() const {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a over 64-bit words
    const auto mix = [&](uint64_t word) { hash = (hash ^ word) * 0x100000001b3u; };
    for (const data::Dataset* split : {&splits_.train, &splits_.validation, &splits_.test}) {
      mix(static_cast<uint64_t>(split->count));
      for (const int32_t label : split->labels) mix(static_cast<uint64_t>(label));
      for (const float weight : split->weights) mix(std::bit_cast<uint32_t>(weight));
    }
    for (const double value : model_.standardization.mean) mix(std::bit_cast<uint64_t>(value));
    for (const double value : model_.standardization.std) mix(std::bit_cast<uint64_t>(value));
    for (const std::string& name : model_.class_names) {
      for (const char c : name) mix(static_cast<uint64_t>(static_cast<unsigned char>(c)));
      mix(0);
    }
    return {model_.training, to_toml(model_.spec),
            fmt::format("{} + {} + {} examples, {:016x}", splits_.train.count, splits_.validation.count,
                        splits_.test.count, hash)};
  }

  TrainResult dry_run() {
    order_ = data::epoch_order(splits_.train.count, settings_.seed, 1);
    state_.epoch = 1;
    state_.step = 1;
    TrainResult result;
    result.status = "finished";
    result.parameters = parameters_;
    result.steps = 1;
    if (recorder_) recorder_->look(0, 0);
    for (Executable* executable : {executable_.get(), last_executable_.get()}) {
      if (executable == nullptr) continue;
      const RunArguments arguments =
          read_batch(0, executable == executable_.get() ? cut_.sizes.front() : cut_.sizes.back());
      if (!executable->run(arguments).finite) {
        stop_not_finite(result, executable->first_nonfinite(arguments));
        return result;
      }
      if (executable == executable_.get()) result.train_loss = executable->scalar("loss");
    }
    if (!require_finite_state(result)) return result;
    for (data::Dataset* split : {&splits_.test, &splits_.validation})
      *split = data::first_examples(*split, settings_.batch_size);
    evaluate_splits(*evaluator_, result);
    require_finite_outputs(result.test_loss, result.validation_loss, result);
    result.peak_memory_bytes = peak_memory_bytes();
    return result;
  }

  // Test and validation of the moment.
  template <class Figures>
  void evaluate_splits(Evaluator& evaluator, Figures& figures) {
    if (splits_.test.count > 0) {
      answers_ = evaluator.run(splits_.test, model_.standardization);
      answered_step_ = state_.step;
      figures.test_loss = answers_.loss;
      figures.test_accuracy = answers_.accuracy;
    }
    if (splits_.validation.count > 0) {
      const EvalResult validation = evaluator.run(splits_.validation, model_.standardization);
      figures.validation_loss = validation.loss;
      figures.validation_accuracy = validation.accuracy;
    }
  }

  void open_folder() {
    identity_ = identity();
    folder_.emplace(
        settings_.out.empty()
            ? RunFolder::create_numbered("runs", settings_.model == settings_.from ? model_.spec.name : settings_.model)
            : RunFolder::create_or_resume(settings_.out, settings_.resume));
    if (settings_.resume) resume();
    size_t bytes = 0;
    for (const auto& [name, tensor] : model_.store.tensors()) bytes += tensor.bytes();
    folder_->require_free_bytes(4 * bytes + (size_t{1} << 20));  // two checkpoints, one being written, the model
    if (state_.step == 0 && saved_step_ != 0)
      save_checkpoint();  // also finds out that nothing can be written before any work is done
  }

  void resume() {
    LatestCheckpoint latest = folder_->latest_checkpoint();
    if (!latest.note.empty()) note(latest.note);
    if (!latest.found) {
      note("there is no checkpoint in " + folder_->dir() + " to resume from: starting from the beginning");
      cut_log(folder_->log_path(), -1);
      return;
    }
    state_ = restore_checkpoint(latest.found->state, latest.found->path, identity_, model_.store);
    require_place_in_run(latest.found->path);
    // Before the first step a log has nothing that is not written again.
    cut_log(folder_->log_path(), state_.step > 0 ? state_.step : -1);
    note(fmt::format("resuming {} at epoch {}, step {}", folder_->dir(), state_.epoch, state_.step));
  }

  // The numbers of a checkpoint index the batches and the examples of an epoch: they must be those of a step of this run.
  void require_place_in_run(const std::string& path) const {
    const TrainState& s = state_;
    bool sound = s.epoch >= 0 && s.epoch <= settings_.epochs && s.batch >= 0 && s.batch <= steps_per_epoch() &&
                 s.updates >= 0 && s.updates <= s.step && s.sums.examples >= 0 && s.sums.refused >= 0;
    if (sound) {
      const auto done = cut_.sizes.begin() + s.batch;
      sound = s.first_example == std::accumulate(cut_.sizes.begin(), done, int64_t{0}) &&
              s.step == (s.epoch == 0 ? 0 : (s.epoch - 1) * steps_per_epoch() + s.batch);
    }
    if (!sound) {
      throw FormatError(
          fmt::format("'{}' is damaged: epoch {}, step {}, batch {} and example {} do not belong together in this run",
                      path, s.epoch, s.step, s.batch, s.first_example));
    }
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
    start.settings["record-layers"] = std::to_string(settings_.record_layers);
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
    if (settings_.schedule != ScheduleKind::kOneCycle) schedule.warmup_steps = steps(settings_.warmup_epochs);
    if (settings_.schedule == ScheduleKind::kStep)
      schedule.step_every = std::max<int64_t>(1, steps(settings_.step_epochs));
    schedule.factor = settings_.step_factor;
    return schedule;
  }

  // Examples [first, first + n) of this epoch's order, read into the batch buffers.
  RunArguments read_batch(int64_t first, int64_t n) {
    const std::span<const int64_t> indices(order_.data() + first, static_cast<size_t>(n));
    auto* x = reinterpret_cast<float*>(x_.get());
    reader_->read(indices, static_cast<uint64_t>(state_.epoch), threads_, x, labels_.data());
    for (size_t i = 0; i < weights_.size() && i < indices.size(); ++i)
      weights_[i] = splits_.train.weights[static_cast<size_t>(indices[i])];
    return {.x = x,
            .labels = labels_.data(),
            .n = n,
            .weights = weights_.empty() ? nullptr : weights_.data(),
            .learning_rate = learning_rate_at(schedule(), state_.step),
            .step = state_.updates + 1,
            .average_share = average_share(settings_.average, state_.epoch, state_.averages),
            .seed = settings_.seed,
            .epoch = static_cast<uint64_t>(state_.epoch),
            .example_indices = indices.data()};
  }

  TrainResult loop() {
    TrainResult result;
    result.status = "finished";
    last_checkpoint_s_ = now_s();
    profiled_step_ = std::min(state_.step + kProfiledStep, total_steps());
    if (recorder_ && state_.step == 0) log_->append(recorder_->look(0, 0));
    while (state_.step < total_steps()) {
      if (state_.epoch == 0 || state_.batch == steps_per_epoch()) begin_epoch();
      if (order_.empty()) {
        order_ = data::epoch_order(splits_.train.count, settings_.seed, static_cast<uint64_t>(state_.epoch));
      }
      if (!train_step(result)) return result;
      const bool epoch_ends = state_.batch == steps_per_epoch() || state_.step == total_steps();
      const bool interrupted = stop_asked() && state_.step < total_steps();
      const bool due = settings_.checkpoint_every_s > 0 && now_s() - last_checkpoint_s_ >= settings_.checkpoint_every_s;
      if (!epoch_ends && !interrupted && !due) continue;
      // The update itself can overflow a weight or a state; the next step's guard would find it, but what is saved must be good.
      if (!require_finite_state(result)) return result;
      if (epoch_ends && !end_epoch(result)) return result;
      if (saved_step_ != state_.step) save_checkpoint();
      if (interrupted) {
        result.status = "interrupted";
        return result;
      }
    }
    return result;
  }

  void begin_epoch() {
    ++state_.epoch;
    state_.batch = 0;
    state_.first_example = 0;
    state_.sums = {};
    order_.clear();
    if (settings_.running_statistics == RunningStatistics::kMeanOfBatches) forget_batches();
  }

  // The plain average of the batches of an epoch: what is updated counts them from 0 again.
  void forget_batches() {
    const Graph& graph = executable_->plan().graph;
    for (const Node& node : graph.nodes) {
      if (std::holds_alternative<UpdateRunning>(node.op))
        model_.store.writable(graph.value(node.inputs[3]).name).values<int64_t>()[0] = 0;
    }
  }

  // False when the run ends here: `result` says why.
  bool train_step(TrainResult& result) {
    const int64_t n = cut_.sizes[static_cast<size_t>(state_.batch)];
    const bool last = last_executable_ != nullptr && state_.batch == steps_per_epoch() - 1;
    Executable& executable = last ? *last_executable_ : *executable_;
    const double start = now_s();
    const RunArguments arguments = read_batch(state_.first_example, n);
    const bool profiled = !settings_.profile.empty() && state_.step + 1 == profiled_step_;
    const Trace trace = profiled ? executable.trace(arguments) : Trace{};
    const RunResult run = profiled ? RunResult{trace.finite} : executable.run(arguments);
    const double seconds = now_s() - start;
    ++state_.step;
    ++state_.batch;
    state_.first_example += n;
    if (profiled) save_profile(executable.plan(), trace);
    const double loss = executable.scalar("loss");
    if (run.finite) {
      ++state_.updates;
      if (arguments.average_share > 0) ++state_.averages;
      if (&executable == executable_.get()) has_moments_ = true;
      const double weight =
          is_weighted() ? weight_of(std::span(weights_).first(static_cast<size_t>(n))) : static_cast<double>(n);
      state_.sums.loss += loss * weight;
      state_.sums.correct += executable.scalar("correct");
      state_.sums.examples += n;
      state_.sums.weight += weight;
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
    if (!run.finite && settings_.on_nonfinite == OnNonfinite::kStop) {
      return stop_not_finite(result, executable.first_nonfinite(arguments));
    }
    if (recorder_ && look_is_due(state_.batch, steps_per_epoch(), settings_.record_layers))
      log_->append(recorder_->look(state_.step, state_.epoch));
    report_progress(arguments.learning_rate);
    return true;
  }

  void save_profile(const Plan& plan, const Trace& trace) {
    profile_ = profile_of(plan, trace);
    profile_->step = state_.step;
    write_file_atomically(settings_.profile, chrome_trace(plan, trace));
  }

  // Always false: the run ends here.
  bool stop_not_finite(TrainResult& result, const std::string& tensor) const {
    const bool warms = settings_.schedule == ScheduleKind::kOneCycle || settings_.warmup_epochs > 0;
    result.status = "not finite";
    if (tensor.starts_with("weights (")) {
      result.message = fmt::format(
          "training stopped at step {} (epoch {}): its batch has no statistics because of its {}; nothing was updated "
          "by "
          "that step; multiply all weights by a larger number, take a larger --batch-size, or give --on-nonfinite skip",
          state_.step, state_.epoch, tensor);
      return false;
    }
    result.message = fmt::format(
        "training stopped at step {} (epoch {}): {} is not finite; nothing was updated by that step; try a smaller "
        "--learning-rate, "
        "--clip-norm 1{}",
        state_.step, state_.epoch, tensor.empty() ? "a gradient" : tensor, warms ? "" : " or --warmup-epochs 1");
    return false;
  }

  // False, with `result` saying so, when finite weights give outputs that are not.
  bool require_finite_outputs(std::optional<double> test_loss, std::optional<double> validation_loss,
                              TrainResult& result) const {
    if (std::isfinite(test_loss.value_or(0)) && std::isfinite(validation_loss.value_or(0))) return true;
    result.status = "not finite";
    result.message = fmt::format(
        "training stopped after step {} (epoch {}): the weights have grown so large that the loss on the {} set is not "
        "finite; try a "
        "smaller --learning-rate or --clip-norm 1",
        state_.step, state_.epoch, std::isfinite(test_loss.value_or(0)) ? "validation" : "test");
    return false;
  }

  // False, with `result` saying so, when a weight, a running statistic or an optimizer state has overflowed.
  bool require_finite_state(TrainResult& result) const {
    for (const auto& [name, tensor] : model_.store.tensors()) {
      if (tensor.dtype() != DType::kF32 || kernels::all_finite(tensor.values<float>().data(), tensor.count())) continue;
      result.status = "not finite";
      result.message = fmt::format(
          "training stopped after step {} (epoch {}): its update made {} overflow; try a smaller --learning-rate or "
          "--clip-norm 1",
          state_.step, state_.epoch, name);
      return false;
    }
    return true;
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
    p.loss = epoch_mean(state_.sums.loss);
    p.accuracy = epoch_mean(state_.sums.correct);
    p.learning_rate = learning_rate;
    p.images_per_s = epoch_seconds_ > 0 ? static_cast<double>(epoch_examples_) / epoch_seconds_ : 0;
    const double step_s = epoch_seconds_ * static_cast<double>(settings_.batch_size) /
                          std::max<double>(1, static_cast<double>(epoch_examples_));
    p.seconds_left = static_cast<double>(total_steps() - state_.step) * step_s;
    observer_.progress(p);
  }

  double epoch_mean(double sum) const { return sum / state_.sums.weight; }  // NaN when all were refused

  // False when the run ends here.
  bool end_epoch(TrainResult& result) {
    EpochSummary s;
    s.epoch = state_.epoch;
    s.epochs = settings_.epochs;
    s.train_loss = epoch_mean(state_.sums.loss);
    s.train_accuracy = epoch_mean(state_.sums.correct);
    s.batches = state_.batch;
    s.refused_batches = state_.sums.refused;
    if (averaged() && !try_outcome(outcome_kind(), result)) return false;
    evaluate_splits(averaged() ? *outcome_evaluator_ : *evaluator_, s);
    s.seconds = epoch_seconds_;
    s.images_per_s = epoch_seconds_ > 0 ? static_cast<double>(epoch_examples_) / epoch_seconds_ : 0;
    last_epoch_ = s;
    log_->append(EpochRecord{.epoch = s.epoch,
                             .step = state_.step,
                             .train_loss = s.train_loss,
                             .train_accuracy = s.train_accuracy,
                             .test_loss = s.test_loss,
                             .test_accuracy = s.test_accuracy,
                             .validation_loss = s.validation_loss,
                             .validation_accuracy = s.validation_accuracy,
                             .images_per_s = s.images_per_s,
                             .seconds = s.seconds,
                             .refused_batches = s.refused_batches,
                             .norms = norm_records()});
    epoch_seconds_ = 0;
    epoch_examples_ = 0;
    if (observer_.epoch) observer_.epoch(s);
    if (s.refused_batches > 0) {
      note(fmt::format("warning: {} of the {} batches of epoch {} were refused: not finite", s.refused_batches,
                       s.batches, s.epoch));
    }
    if (state_.sums.examples > 0) return require_finite_outputs(s.test_loss, s.validation_loss, result);
    result.status = "not finite";
    result.message = fmt::format(
        "training stopped after epoch {}: all of its batches were refused because they were not finite; try a "
        "smaller --learning-rate or --clip-norm 1",
        s.epoch);
    return false;
  }

  // Requires a finite state.
  void save_checkpoint() {
    const double start = now_s();
    if (log_) log_->sync();
    folder_->save_checkpoint(state_.step, checkpoint_of(state_, identity_, model_.store));
    saved_step_ = state_.step;
    last_checkpoint_s_ = now_s();
    if (!log_) return;
    const std::filesystem::path path = folder_->checkpoint_path(state_.step);
    log_->append(CheckpointRecord{.step = state_.step,
                                  .epoch = state_.epoch,
                                  .file = path.filename().string(),
                                  .seconds = last_checkpoint_s_ - start});
  }

  bool averaged() const { return state_.averages > 0; }
  bool passes_at_end() const {
    return settings_.running_statistics == RunningStatistics::kPopulation ||
           settings_.running_statistics == RunningStatistics::kPopulationOnePass;
  }

  // The network as it is evaluated and saved where that is not the one that is trained: with averaged weights if there are, and running
  // statistics made anew from the training set.
  void make_outcome(RunningStatistics kind) {
    if (outcome_ && outcome_step_ == state_.step && outcome_kind_ == kind) return;
    outcome_evaluator_.reset();
    outcome_ = std::make_unique<Model>(clone(model_));
    for (const auto& [name, tensor] : outcome_->store.tensors()) {
      const std::string average = "average." + name;
      if (!averaged() || !model_.store.contains(average)) continue;
      std::memcpy(outcome_->store.writable(name).raw(), model_.store.at(average).raw(), tensor.bytes());
    }
    StatisticsWork work;
    if (!norm_layers(model_.spec).empty()) {
      work = recompute_statistics(*outcome_, splits_.train,
                                  {.kind = kind,
                                   .biased = model_.spec.norm_options.biased,
                                   .batch_size = settings_.batch_size,
                                   .seed = settings_.seed,
                                   .threads = threads_,
                                   .keep_frozen = true});
      say_recomputed(kind, work);
    }
    outcome_seconds_ = work.seconds;
    outcome_step_ = state_.step;
    outcome_kind_ = kind;
    outcome_evaluator_ = evaluator_of(*outcome_);
  }

  // What averaged weights are evaluated with: a network in which some norms are trained through their running statistics has no pass
  // in which all normalize by the batch.
  RunningStatistics outcome_kind() const {
    return model_.spec.norm_switches == NormSwitches{} ? RunningStatistics::kPopulationOnePass
                                                       : RunningStatistics::kPopulation;
  }

  // False, with `result` saying so, when weights have grown so large that they have no statistics.
  bool try_outcome(RunningStatistics kind, TrainResult& result) {
    try {
      make_outcome(kind);
      return true;
    } catch (const Error& error) {
      if (error.exit_code() != kExitNotFinite) throw;
      outcome_.reset();
      result.status = "not finite";
      result.message =
          fmt::format("training stopped after step {} (epoch {}): {}; try a smaller --learning-rate or --clip-norm 1",
                      state_.step, state_.epoch, error.what());
      return false;
    }
  }

  // Of averages, which are made in every epoch, once.
  void say_recomputed(RunningStatistics kind, const StatisticsWork& work) {
    const std::string made =
        fmt::format("running statistics of {} norms made anew from {} training examples ({}, {} pass{}, {:.1f} s)",
                    work.norms, work.examples, name_of(kind), work.passes, work.passes == 1 ? "" : "es", work.seconds);
    const std::string text = averaged() ? "averaged weights are evaluated and saved, with " + made : made;
    if (!averaged() || !said_recomputed_.count(kind)) note(text);
    said_recomputed_.insert(kind);
  }

  // At the end of the run: evaluated anew where the statistics are others than those of the last epoch's evaluation.
  void make_last_outcome(TrainResult& result) {
    const bool passes = passes_at_end() && result.status == "finished" && !norm_layers(model_.spec).empty();
    if (!passes && !averaged()) return;
    const RunningStatistics kind = passes ? settings_.running_statistics : outcome_kind();
    const bool evaluated = outcome_ && outcome_step_ == state_.step && outcome_kind_ == kind;
    if (!try_outcome(kind, result)) return;
    if (evaluated || result.status != "finished") return;
    if (!last_epoch_) last_epoch_.emplace();
    evaluate_splits(*outcome_evaluator_, *last_epoch_);
    log_->append(StatisticsRecord{.step = state_.step,
                                  .epoch = state_.epoch,
                                  .running_statistics = outcome_->running_statistics,
                                  .examples = splits_.train.count,
                                  .seconds = outcome_seconds_,
                                  .test_loss = last_epoch_->test_loss,
                                  .test_accuracy = last_epoch_->test_accuracy,
                                  .validation_loss = last_epoch_->validation_loss,
                                  .validation_accuracy = last_epoch_->validation_accuracy});
    require_finite_outputs(last_epoch_->test_loss, last_epoch_->validation_loss, result);
  }

  // How far the statistics of the last batch are from the running ones. Costs nothing: the step has made them.
  std::vector<NormRecord> norm_records() const {
    std::vector<NormRecord> records;
    if (!has_moments_) return records;
    std::vector<ChannelStatistics> batch;
    for (const std::string& norm : norms_)
      batch.push_back(statistics_of({norm, executable_->moments(moments_name(norm))}));
    const std::vector<ChannelStatistics> running = running_statistics_of(model_.spec, model_.store);
    for (const NormDistance& d : distances(model_.spec, running, batch))
      records.push_back({d.name, d.mean_shift, d.log_var_ratio, d.channel});
    return records;
  }

  void finish(TrainResult& result, double seconds) {
    result.epochs = state_.epoch;
    result.steps = state_.step;
    result.parameters = parameters_;
    result.seconds = seconds;
    result.images_per_s = step_seconds_ > 0 ? static_cast<double>(step_examples_) / step_seconds_ : 0;
    result.run_dir = folder_->dir();
    result.train_loss = epoch_mean(state_.sums.loss);
    result.train_accuracy = epoch_mean(state_.sums.correct);
    if (result.status != "not finite") make_last_outcome(result);
    if (result.status != "not finite") {
      if (result.status == "finished" && !last_epoch_)  // resumed after its last epoch
        evaluate_splits(outcome_ ? *outcome_evaluator_ : *evaluator_, result);
      save_model(folder_->model_path(), outcome_ ? *outcome_ : model_);
      result.model_path = folder_->model_path();
      append_answers();
    }
    // An interrupted run has figures only if it stopped where an epoch ends: else they would be those of older weights.
    if (last_epoch_ && (result.status != "interrupted" || state_.batch == steps_per_epoch())) {
      result.test_loss = last_epoch_->test_loss;
      result.test_accuracy = last_epoch_->test_accuracy;
      result.validation_loss = last_epoch_->validation_loss;
      result.validation_accuracy = last_epoch_->validation_accuracy;
    }
    result.profile = profile_;
    if (!settings_.profile.empty() && !profile_)
      note("warning: no step was profiled: the run ended before step " + std::to_string(profiled_step_));
    result.peak_memory_bytes = peak_memory_bytes();
    log_->append(EndRecord{.status = result.status,
                           .step = state_.step,
                           .epoch = state_.epoch,
                           .seconds = seconds,
                           .peak_memory_bytes = result.peak_memory_bytes,
                           .message = result.message});
    log_->sync();
  }

  // Where the last evaluation was of the network that is saved: not in the middle of an epoch.
  void append_answers() {
    if (answered_step_ != state_.step || answers_.labelled == 0) return;
    AnswersRecord record = answers_of(answers_, splits_.test, model_.class_names);
    record.step = state_.step;
    record.epoch = state_.epoch;
    log_->append(record);
  }

  // Of those that this process makes, the one that is profiled: by then memory has been touched and the clock of the processor is up.
  static constexpr int64_t kProfiledStep = 3;

  const TrainSettings settings_;
  const TrainObserver& observer_;
  const int threads_;
  data::Splits splits_;
  Model model_;
  std::optional<Model> from_;
  BatchCut cut_;
  Precision precision_ = Precision::kF32;
  int64_t parameters_ = 0;
  std::unique_ptr<Executable> executable_, last_executable_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<LayerRecorder> recorder_;  // null: --record-layers 0
  EvalResult answers_;                       // of the last evaluation of the test set
  int64_t answered_step_ = -1;
  std::unique_ptr<data::BatchReader> reader_;
  AlignedBytes x_;
  std::vector<int32_t> labels_;
  std::vector<float> weights_;  // of a batch; empty where examples have none
  std::optional<RunFolder> folder_;
  std::optional<RunLogWriter> log_;
  RunIdentity identity_;
  TrainState state_;
  int64_t profiled_step_ = 0;
  std::optional<StepProfile> profile_;
  std::vector<std::string> norms_;  // whose moments executable_ has
  bool has_moments_ = false;        // of a step that this process made
  std::unique_ptr<Model> outcome_;  // make_outcome
  std::unique_ptr<Evaluator> outcome_evaluator_;
  int64_t outcome_step_ = -1;
  RunningStatistics outcome_kind_ = RunningStatistics::kEma;
  double outcome_seconds_ = 0;
  std::set<RunningStatistics> said_recomputed_;
  int64_t saved_step_ = -1;  // of the newest checkpoint that this process wrote
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
