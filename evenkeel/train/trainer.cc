#include "evenkeel/train/trainer.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>

#include <fmt/format.h>

#include "evenkeel/core/parallel.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/outcome.h"
#include "evenkeel/train/recording.h"
#include "evenkeel/train/resolve.h"
#include "evenkeel/train/run_folder.h"
#include "evenkeel/train/run_input.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/train/statistics.h"
#include "evenkeel/train/stop_messages.h"
#include "evenkeel/train/training_step.h"
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
    input_ = load_input(settings_, threads_);
    const auto note_it = [this](const std::string& text) { note(text); };
    step_.emplace(settings_, splits().train, model(), input_.from ? &*input_.from : nullptr, threads_, note_it);
    note_about_renorm();
    evaluator_ = evaluator_of(model(), settings_, step_->is_weighted(), threads_);
    outcome_.emplace(settings_, splits().train, model(), threads_, note_it);
    if (settings_.record_layers > 0) {
      recorder_ = std::make_unique<LayerRecorder>(
          model().spec, model().store, splits().train, model().standardization,
          LayerRecorderSettings{.batch_size = settings_.batch_size, .seed = settings_.seed, .threads = threads_});
    }
  }

  data::Splits& splits() { return input_.splits; }
  Model& model() { return input_.model; }
  const Model& model() const { return input_.model; }

  void note_about_renorm() {
    for (const Node& node : step_->regular().plan().graph.nodes) {
      const auto* renorm = std::get_if<RenormScale>(&node.op);
      if (renorm == nullptr || total_steps() > renorm->hold) continue;
      return note(fmt::format(
          "warning: batch renormalization stays plain batch norm for its first {} steps, and the run has {}; "
          "give --renorm-schedule",
          renorm->hold, total_steps()));
    }
  }

  TrainResult dry_run() {
    order_ = data::epoch_order(splits().train.count, settings_.seed, 1);
    state_.epoch = 1;
    state_.step = 1;
    TrainResult result;
    result.status = "finished";
    result.parameters = step_->parameters();
    result.steps = 1;
    if (recorder_) recorder_->look(0, 0);
    for (const int64_t batch :
         step_->has_last() ? std::vector<int64_t>{0, step_->batches() - 1} : std::vector<int64_t>{0}) {
      state_.batch = batch;
      Executable& executable = step_->executable(batch);
      const RunArguments arguments = read_batch();
      if (!executable.run(arguments).finite) {
        goes_on(message_of_refused_step(settings_, state_, executable.first_nonfinite(arguments)), result);
        return result;
      }
      if (batch == 0) result.train_loss = executable.scalar("loss");
    }
    if (!goes_on(message_of_overflow(state_, model().store), result)) return result;
    for (data::Dataset* split : {&splits().test, &splits().validation})
      *split = data::first_examples(*split, settings_.batch_size);
    evaluate_splits(*evaluator_, result);
    goes_on(message_of_outputs(state_, result.test_loss, result.validation_loss), result);
    result.peak_memory_bytes = peak_memory_bytes();
    return result;
  }

  // Test and validation of the moment.
  template <class Figures>
  void evaluate_splits(Evaluator& evaluator, Figures& figures) {
    if (splits().test.count > 0) {
      answers_ = evaluator.run(splits().test, model().standardization);
      answered_step_ = state_.step;
      figures.test_loss = answers_.loss;
      figures.test_accuracy = answers_.accuracy;
    }
    if (splits().validation.count > 0) {
      const EvalResult validation = evaluator.run(splits().validation, model().standardization);
      figures.validation_loss = validation.loss;
      figures.validation_accuracy = validation.accuracy;
    }
  }

  void open_folder() {
    identity_ = identity_of(splits(), model());
    folder_.emplace(settings_.out.empty()
                        ? RunFolder::create_numbered(
                              "runs", settings_.model == settings_.from ? model().spec.name : settings_.model)
                        : RunFolder::create_or_resume(settings_.out, settings_.resume));
    if (settings_.resume) resume();
    size_t bytes = 0;
    for (const auto& [name, tensor] : model().store.tensors()) bytes += tensor.bytes();
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
    state_ = restore_checkpoint(latest.found->state, latest.found->path, identity_, model().store);
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
      const auto done = step_->cut().sizes.begin() + s.batch;
      sound = s.first_example == std::accumulate(step_->cut().sizes.begin(), done, int64_t{0}) &&
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
    start.model = model().spec.name;
    start.data = settings_.data;
    start.parameters = step_->parameters();
    start.train_examples = splits().train.count;
    start.test_examples = splits().test.count;
    start.versions["evenkeel"] = version();
    start.settings = model().training;
    start.settings["threads"] = std::to_string(threads_);
    start.settings["record-layers"] = std::to_string(settings_.record_layers);
    log_->append(start);
  }

  int64_t steps_per_epoch() const { return step_->batches(); }
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

  // The next batch of this epoch, and what its update needs to know.
  RunArguments read_batch() {
    RunArguments arguments = step_->read(order_, state_);
    arguments.learning_rate = learning_rate_at(schedule(), state_.step);
    arguments.step = state_.updates + 1;
    arguments.average_share = average_share(settings_.average, state_.epoch, state_.averages);
    return arguments;
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
        order_ = data::epoch_order(splits().train.count, settings_.seed, static_cast<uint64_t>(state_.epoch));
      }
      if (!train_step(result)) return result;
      const bool epoch_ends = state_.batch == steps_per_epoch() || state_.step == total_steps();
      const bool interrupted = stop_asked() && state_.step < total_steps();
      const bool due = settings_.checkpoint_every_s > 0 && now_s() - last_checkpoint_s_ >= settings_.checkpoint_every_s;
      if (!epoch_ends && !interrupted && !due) continue;
      // The update itself can overflow a weight or a state; the next step's guard would find it, but what is saved must be good.
      if (!goes_on(message_of_overflow(state_, model().store), result)) return result;
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
    const Graph& graph = step_->regular().plan().graph;
    for (const Node& node : graph.nodes) {
      if (std::holds_alternative<UpdateRunning>(node.op))
        model().store.writable(graph.value(node.inputs[3]).name).values<int64_t>()[0] = 0;
    }
  }

  // False when the run ends here: `result` says why.
  bool train_step(TrainResult& result) {
    Executable& executable = step_->executable(state_.batch);
    const double start = now_s();
    const RunArguments arguments = read_batch();
    const int64_t n = arguments.n;
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
      if (&executable == &step_->regular()) has_moments_ = true;
      state_.sums.loss += loss * step_->weight();
      state_.sums.correct += executable.scalar("correct");
      state_.sums.examples += n;
      state_.sums.weight += step_->weight();
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
      return goes_on(message_of_refused_step(settings_, state_, executable.first_nonfinite(arguments)), result);
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

  // True where there is nothing to say; else false, and the run ends.
  static bool goes_on(const std::string& message, TrainResult& result) {
    if (message.empty()) return true;
    result.status = "not finite";
    result.message = message;
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
    if (averaged() && !try_outcome(outcome_->kind_of_averages(), result)) return false;
    evaluate_splits(averaged() ? outcome_->evaluator() : *evaluator_, s);
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
    if (state_.sums.examples == 0) return goes_on(message_of_refused_epoch(s.epoch), result);
    return goes_on(message_of_outputs(state_, s.test_loss, s.validation_loss), result);
  }

  // Requires a finite state.
  void save_checkpoint() {
    const double start = now_s();
    if (log_) log_->sync();
    folder_->save_checkpoint(state_.step, checkpoint_of(state_, identity_, model().store));
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

  // False, with `result` saying so, when weights have grown so large that they have no statistics.
  bool try_outcome(RunningStatistics kind, TrainResult& result) {
    try {
      outcome_->make(kind, state_);
      return true;
    } catch (const Error& error) {
      if (error.exit_code() != kExitNotFinite) throw;
      return goes_on(message_of_statistics(state_, error.what()), result);
    }
  }

  // At the end of the run: evaluated anew where the statistics are others than those of the last epoch's evaluation.
  void make_last_outcome(TrainResult& result) {
    const bool passes = is_made_by_passes(settings_.running_statistics) && result.status == "finished" &&
                        !norm_layers(model().spec).empty();
    if (!passes && !averaged()) return;
    const RunningStatistics kind = passes ? settings_.running_statistics : outcome_->kind_of_averages();
    const bool evaluated = outcome_->is_of(kind, state_);
    if (!try_outcome(kind, result)) return;
    if (evaluated || result.status != "finished") return;
    if (!last_epoch_) last_epoch_.emplace();
    evaluate_splits(outcome_->evaluator(), *last_epoch_);
    log_->append(StatisticsRecord{.step = state_.step,
                                  .epoch = state_.epoch,
                                  .running_statistics = outcome_->model()->running_statistics,
                                  .examples = splits().train.count,
                                  .seconds = outcome_->seconds(),
                                  .test_loss = last_epoch_->test_loss,
                                  .test_accuracy = last_epoch_->test_accuracy,
                                  .validation_loss = last_epoch_->validation_loss,
                                  .validation_accuracy = last_epoch_->validation_accuracy});
    goes_on(message_of_outputs(state_, last_epoch_->test_loss, last_epoch_->validation_loss), result);
  }

  // How far the statistics of the last batch are from the running ones. Costs nothing: the step has made them.
  std::vector<NormRecord> norm_records() const {
    std::vector<NormRecord> records;
    if (!has_moments_) return records;
    std::vector<ChannelStatistics> batch;
    for (const std::string& norm : step_->norms())
      batch.push_back(statistics_of({norm, step_->regular().moments(moments_name(norm))}));
    const std::vector<ChannelStatistics> running = running_statistics_of(model().spec, model().store);
    for (const NormDistance& d : distances(model().spec, running, batch))
      records.push_back({d.name, d.mean_shift, d.log_var_ratio, d.channel});
    return records;
  }

  void finish(TrainResult& result, double seconds) {
    result.epochs = state_.epoch;
    result.steps = state_.step;
    result.parameters = step_->parameters();
    result.seconds = seconds;
    result.images_per_s = step_seconds_ > 0 ? static_cast<double>(step_examples_) / step_seconds_ : 0;
    result.run_dir = folder_->dir();
    result.train_loss = epoch_mean(state_.sums.loss);
    result.train_accuracy = epoch_mean(state_.sums.correct);
    if (result.status != "not finite") make_last_outcome(result);
    if (result.status != "not finite") {
      if (result.status == "finished" && !last_epoch_)  // resumed after its last epoch
        evaluate_splits(outcome_->model() != nullptr ? outcome_->evaluator() : *evaluator_, result);
      save_model(folder_->model_path(), outcome_->model() != nullptr ? *outcome_->model() : model());
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
    AnswersRecord record = answers_of(answers_, splits().test, model().class_names);
    record.step = state_.step;
    record.epoch = state_.epoch;
    log_->append(record);
  }

  // Of those that this process makes, the one that is profiled: by then memory has been touched and the clock of the processor is up.
  static constexpr int64_t kProfiledStep = 3;

  const TrainSettings settings_;
  const TrainObserver& observer_;
  const int threads_;
  RunInput input_;
  std::optional<TrainingStep> step_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<LayerRecorder> recorder_;  // null: --record-layers 0
  EvalResult answers_;                       // of the last evaluation of the test set
  int64_t answered_step_ = -1;
  std::optional<RunFolder> folder_;
  std::optional<RunLogWriter> log_;
  RunIdentity identity_;
  TrainState state_;
  int64_t profiled_step_ = 0;
  std::optional<StepProfile> profile_;
  bool has_moments_ = false;  // of a step that this process made
  std::optional<Outcome> outcome_;
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
