#include "evenkeel/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "evenkeel/core/clock.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/onednn.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/train/best_epoch.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/outcome.h"
#include "evenkeel/train/ranks.h"
#include "evenkeel/train/recording.h"
#include "evenkeel/train/resolve.h"
#include "evenkeel/train/run_files.h"
#include "evenkeel/train/run_input.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/train/statistics.h"
#include "evenkeel/train/stop_messages.h"
#include "evenkeel/train/training_step.h"
#include "evenkeel/version.h"

namespace evenkeel {
namespace {

int threads_of(const TrainSettings& settings, const Comm& comm) {
  if (settings.threads > 0) return settings.threads;
  return comm.size() > 1 ? comm.cores() : available_cores();
}

// One training run from its data to its model, on every rank. What all ranks compute is the same everywhere: the weights, the figures, where the
// run stops. Observer and files are rank 0's (on_root).
class Run {
 public:
  Run(const TrainSettings& settings, const TrainObserver& observer, Comm& comm)
      : settings_(settings),
        observer_(observer),
        comm_(comm),
        threads_(threads_of(settings, comm)),
        files_(settings_, observer_, comm),
        best_(settings_, files_) {}

  TrainResult run() {
    const double start = now_s();
    comm_.set_timeout(settings_.timeout_s);
    comm_.place = {0, "the start of a training run"};
    prepare();
    if (settings_.dry_run) return dry_run();
    const std::string name = settings_.model == settings_.from ? model().spec.name : settings_.model;
    files_.open(name, identity_, step_->cut(), state_, model().store);
    try {
      log_start();
      TrainResult result = loop();
      finish(result, now_s() - start);
      return result;
    } catch (const std::exception& error) {
      files_.log_failure({.status = "failed",
                          .step = state_.step,
                          .epoch = state_.epoch,
                          .seconds = now_s() - start,
                          .peak_memory_bytes = peak_memory_bytes(),
                          .message = error.what()});
      throw;
    }
  }

 private:
  template <class F>
  void on_root(F&& action) {
    files_.on_root(action);
  }
  void note(const std::string& text) { files_.note(text); }
  void log(const LogRecord& record) { files_.log(record); }
  bool stop_asked() const { return observer_.stop != nullptr && observer_.stop->load(); }

  // Data, network, plans: everything that can be wrong is found here, before a folder is made.
  void prepare() {
    together(comm_, [&] {
      require_sound(settings_);
      if (comm_.rank() == 0 && !settings_.profile.empty()) require_writable(settings_.profile);
    });
    require_same_terms(comm_, terms_of(settings_));
    together(comm_, [&] {
      input_ = load_input(settings_, threads_);
      best_.require_validation(input_.splits.validation.count);
    });
    identity_ = identity_of(splits(), model());
    require_same_terms(comm_, terms_of(identity_));
    const auto note_it = [this](const std::string& text) { note(text); };
    step_.emplace(settings_, splits().train, model(), input_.from ? &*input_.from : nullptr, threads_, note_it, comm_);
    if (comm_.size() > 1) {
      note(text_of_ranks(comm_, threads_));
      const std::string advice = binding_advice(comm_);
      if (!advice.empty()) note(advice);
    }
    for (const std::string& doubt : splits().notes) note("warning: " + doubt);
    note_about_renorm();
    together(comm_, [&] {
      evaluator_ = evaluator_of(model(), settings_, step_->is_weighted(), threads_);
      outcome_.emplace(settings_, splits().train, model(), threads_, note_it, comm_);
      if (settings_.record_layers > 0 && comm_.rank() == 0) {
        recorder_ = std::make_unique<LayerRecorder>(
            model().spec, model().store, splits().train, model().standardization,
            LayerRecorderSettings{.batch_size = settings_.batch_size, .seed = settings_.seed, .threads = threads_});
      }
    });
    files_.agree_on_failure();  // of a note
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
    result.train_accuracy = std::numeric_limits<double>::quiet_NaN();  // nothing counts it
    result.parameters = step_->parameters();
    result.steps = 1;
    share_state(comm_, state_, model().store);
    on_root([&] {
      if (recorder_) recorder_->look(0, 0);
    });
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
    files_.agree_on_failure();
    return result;
  }

  // Test and validation of the moment.
  template <class Figures>
  void evaluate_splits(Evaluator& evaluator, Figures& figures) {
    if (splits().test.count > 0) {
      comm_.place.what = "the evaluation of the test set";
      answers_ = evaluator.run(splits().test, model().standardization, comm_);
      answered_step_ = state_.step;
      figures.test_loss = answers_.loss;
      figures.test_accuracy = answers_.accuracy;
    }
    if (splits().validation.count > 0) {
      comm_.place.what = "the evaluation of the validation set";
      const EvalResult validation = evaluator.run(splits().validation, model().standardization, comm_);
      figures.validation_loss = validation.loss;
      figures.validation_accuracy = validation.accuracy;
    }
  }

  void log_start() {
    RunStart start;
    start.step = state_.step;
    start.unix_time_s = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    start.model = model().spec.name;
    start.data = settings_.data;
    start.parameters = step_->parameters();
    start.train_examples = splits().train.count;
    start.test_examples = splits().test.count;
    start.versions["evenkeel"] = version();
    start.versions["onednn"] = onednn_version();
    start.settings = model().training;
    start.settings["threads"] = std::to_string(threads_);
    start.settings["record-layers"] = std::to_string(settings_.record_layers);
    if (comm_.size() > 1) start.settings["ranks"] = std::to_string(comm_.size());
    files_.start_log(start);
    files_.agree_on_failure();
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
    schedule.reductions = state_.plateau.reductions;
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
    profiled_step_ = std::min(state_.step + kProfiledStep, total_steps());
    if (state_.step == 0) look();
    mark_comm();
    while (state_.step < total_steps() && !waited_enough(result)) {
      if (state_.epoch == 0 || state_.batch == steps_per_epoch()) begin_epoch();
      if (order_.empty()) {
        order_ = data::epoch_order(splits().train.count, settings_.seed, static_cast<uint64_t>(state_.epoch));
      }
      if (!train_step(result)) return result;
      const bool epoch_ends = state_.batch == steps_per_epoch() || state_.step == total_steps();
      comm_.place.what = "the agreement on what comes after a step";
      const StepSigns signs =
          any_of(comm_, {.stop = stop_asked(), .checkpoint = files_.checkpoint_is_due(), .failed = files_.failed()});
      if (signs.failed) files_.agree_on_failure();
      const bool interrupted = signs.stop && state_.step < total_steps();
      if (!epoch_ends && !interrupted && !signs.checkpoint) continue;
      comm_.place.what = "the comparison of the weights";
      const std::string mended = reconcile(comm_, model().store);
      if (!mended.empty()) note(mended);
      // The update itself can overflow a weight or a state; the next step's guard would find it, but what is saved must be good.
      if (!goes_on(message_of_overflow(state_, model().store), result)) return result;
      if (epoch_ends && !end_epoch(result)) return result;
      files_.save_checkpoint(state_, model().store);
      comm_.place.what = "the writing of a checkpoint";
      files_.agree_on_failure();
      mark_comm();
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
    const int64_t n = arguments.batch;
    comm_.place.step = state_.step + 1;
    const bool profiled = !settings_.profile.empty() && state_.step + 1 == profiled_step_;
    const Trace trace = profiled ? executable.trace(arguments) : Trace{};
    const RunResult run = profiled ? RunResult{trace.finite} : executable.run(arguments);
    const double seconds = now_s() - start;
    ++state_.step;
    ++state_.batch;
    state_.first_example += n;
    if (profiled) on_root([&] { save_profile(executable.plan(), trace); });
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
    StepRecord record{.step = state_.step,
                      .epoch = state_.epoch,
                      .loss = loss,
                      .learning_rate = arguments.learning_rate,
                      .images_per_s = static_cast<double>(n) / seconds,
                      .examples = n};
    if (comm_.size() > 1) {
      const CommTotals before = comm_totals_;
      mark_comm();
      record.comm_bytes = comm_totals_.bytes - before.bytes;
      record.comm_wait_s = comm_totals_.waiting_s - before.waiting_s;
    }
    log(record);
    if (!run.finite && settings_.on_nonfinite == OnNonfinite::kStop) {
      return goes_on(message_of_refused_step(settings_, state_, executable.first_nonfinite(arguments)), result);
    }
    if (look_is_due(state_.batch, steps_per_epoch(), settings_.record_layers)) look();
    on_root([&] { report_progress(arguments.learning_rate); });
    return true;
  }

  void look() {
    on_root([&] {
      if (recorder_) files_.log(recorder_->look(state_.step, state_.epoch));
    });
  }

  // From here on what is said between ranks counts for the next step: that a step was agreed on, but not evaluations and checkpoints.
  void mark_comm() { comm_totals_ = comm_.totals(); }

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
    log(EpochRecord{.epoch = s.epoch,
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
    on_root([&] {
      if (observer_.epoch) observer_.epoch(s);
    });
    if (s.refused_batches > 0) {
      note(fmt::format("warning: {} of the {} batches of epoch {} were refused: not finite", s.refused_batches,
                       s.batches, s.epoch));
    }
    if (state_.sums.examples == 0) return goes_on(message_of_refused_epoch(s.epoch), result);
    if (!goes_on(message_of_outputs(state_, s.test_loss, s.validation_loss), result)) return false;
    best_.judge(s, state_, model().store);
    return true;
  }

  bool averaged() const { return state_.averages > 0; }

  bool waited_enough(TrainResult& result) {
    result.stopped_early = best_.waited_enough(state_, steps_per_epoch());
    if (result.stopped_early) note(fmt::format("stopped after {} epochs: {}", state_.epoch, best_.sentence(state_)));
    return result.stopped_early;
  }

  // The network goes back to the best epoch where that is asked for. What was evaluated last is then another.
  void restore_best() {
    comm_.place.what = "the reading of the best epoch";
    if (!best_.restore(state_, model().store)) return;
    outcome_->forget();
    last_epoch_.reset();
    restored_ = true;
    note("the model is that of the best epoch: " + best_.sentence(state_));
  }

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
  // False where that network is not finite: `result` says so.
  bool make_last_outcome(TrainResult& result) {
    const bool passes = is_made_by_passes(settings_.running_statistics) && result.status == "finished" &&
                        !norm_layers(model().spec).empty();
    if (!passes && !averaged()) return true;
    const RunningStatistics kind = passes ? settings_.running_statistics : outcome_->kind_of_averages();
    const bool evaluated = outcome_->is_of(kind, state_);
    if (!try_outcome(kind, result)) return false;
    if (evaluated || result.status != "finished") return true;
    if (!last_epoch_) last_epoch_.emplace();
    evaluate_splits(outcome_->evaluator(), *last_epoch_);
    log(StatisticsRecord{.step = restored_ ? state_.best.step : state_.step,
                         .epoch = restored_ ? state_.best.epoch : state_.epoch,
                         .running_statistics = outcome_->model()->running_statistics,
                         .examples = splits().train.count,
                         .seconds = outcome_->seconds(),
                         .test_loss = last_epoch_->test_loss,
                         .test_accuracy = last_epoch_->test_accuracy,
                         .validation_loss = last_epoch_->validation_loss,
                         .validation_accuracy = last_epoch_->validation_accuracy});
    return goes_on(message_of_outputs(state_, last_epoch_->test_loss, last_epoch_->validation_loss), result);
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
    result.run_dir = files_.dir();
    result.train_loss = epoch_mean(state_.sums.loss);
    result.train_accuracy = epoch_mean(state_.sums.correct);
    const bool began_to_average = averaged();
    restore_best();
    // Values that are not finite are not saved; those of a best epoch were there before.
    const bool good = result.status != "not finite" || restored_;
    if (good && make_last_outcome(result)) {
      if (!last_epoch_ && (result.status == "finished" || restored_))  // resumed after its last epoch; or of another
        evaluate_splits(outcome_->model() != nullptr ? outcome_->evaluator() : *evaluator_, result);
      on_root([&] {
        save_model(files_.model_path(), outcome_->model() != nullptr ? *outcome_->model() : model());
        append_answers();
      });
      result.model_path = files_.model_path();
    }
    // An interrupted run has figures only if it stopped where an epoch ends: else they would be those of older weights.
    if (last_epoch_ && (result.status != "interrupted" || state_.batch == steps_per_epoch())) {
      result.test_loss = last_epoch_->test_loss;
      result.test_accuracy = last_epoch_->test_accuracy;
      result.validation_loss = last_epoch_->validation_loss;
      result.validation_accuracy = last_epoch_->validation_accuracy;
    }
    if (settings_.average.any() && !began_to_average && result.status == "finished")
      note(fmt::format("warning: no weights were averaged: --average-weights {} begins behind the end of this run",
                       to_string(settings_.average)));
    result.best_epoch = state_.best.epoch;
    result.profile = profile_;
    if (!settings_.profile.empty() && !profile_)
      note("warning: no step was profiled: the run ended before step " + std::to_string(profiled_step_));
    result.peak_memory_bytes = peak_memory_bytes();
    log(EndRecord{.status = result.status,
                  .step = state_.step,
                  .epoch = state_.epoch,
                  .seconds = seconds,
                  .peak_memory_bytes = result.peak_memory_bytes,
                  .message = result.message,
                  .best_epoch = state_.best.epoch,
                  .stopped_early = result.stopped_early});
    files_.sync_log();
    comm_.place.what = "the end of the run";
    files_.agree_on_failure();
  }

  // Where the last evaluation was of the network that is saved: not in the middle of an epoch.
  void append_answers() {
    if (answered_step_ != state_.step || answers_.labelled == 0) return;
    AnswersRecord record = answers_of(answers_, splits().test, model().class_names);
    record.step = restored_ ? state_.best.step : state_.step;
    record.epoch = restored_ ? state_.best.epoch : state_.epoch;
    log(record);
  }

  // Of those that this process makes, the one that is profiled: by then memory has been touched and the clock of the processor is up.
  static constexpr int64_t kProfiledStep = 3;

  const TrainSettings settings_;
  const TrainObserver& observer_;
  Comm& comm_;
  const int threads_;
  RunFiles files_;
  BestEpoch best_;
  bool restored_ = false;   // the network is the best epoch's
  CommTotals comm_totals_;  // when the record of the last step was made
  RunInput input_;
  std::optional<TrainingStep> step_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<LayerRecorder> recorder_;  // null: --record-layers 0, or not rank 0
  EvalResult answers_;                       // of the last evaluation of the test set
  int64_t answered_step_ = -1;
  RunIdentity identity_;
  TrainState state_;
  int64_t profiled_step_ = 0;
  std::optional<StepProfile> profile_;
  bool has_moments_ = false;  // of a step that this process made
  std::optional<Outcome> outcome_;
  std::vector<int64_t> order_;
  std::optional<EpochSummary> last_epoch_;
  double step_seconds_ = 0, epoch_seconds_ = 0;
  int64_t step_examples_ = 0, epoch_examples_ = 0;
};

}  // namespace

TrainResult train(const TrainSettings& settings, const TrainObserver& observer) {
  return train(settings, observer, world());
}

TrainResult train(const TrainSettings& settings, const TrainObserver& observer, Comm& comm) {
  return Run(settings, observer, comm).run();
}

}  // namespace evenkeel
