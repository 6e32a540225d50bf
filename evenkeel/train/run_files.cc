#include "evenkeel/train/run_files.h"

#include <filesystem>
#include <numeric>

#include <fmt/format.h>

#include "evenkeel/core/clock.h"
#include "evenkeel/train/ranks.h"

namespace evenkeel {
namespace {

// The numbers of a checkpoint index the batches and the examples of an epoch: they must be those of a step of this run.
void require_place_in_run(const TrainState& s, const BatchCut& cut, int64_t epochs, const std::string& path) {
  const auto batches = static_cast<int64_t>(cut.sizes.size());
  bool sound = s.epoch >= 0 && s.epoch <= epochs && s.batch >= 0 && s.batch <= batches && s.updates >= 0 &&
               s.updates <= s.step && s.best.epoch >= 0 && s.best.epoch <= s.epoch && s.plateau.reductions >= 0 &&
               s.plateau.since >= 0 && s.plateau.since <= s.epoch && s.sums.examples >= 0 && s.sums.refused >= 0 &&
               s.ranks >= 1;
  if (sound) {
    sound = s.first_example == std::accumulate(cut.sizes.begin(), cut.sizes.begin() + s.batch, int64_t{0}) &&
            s.step == (s.epoch == 0 ? 0 : (s.epoch - 1) * batches + s.batch);
  }
  if (sound) return;
  throw FormatError(
      fmt::format("'{}' is damaged: epoch {}, step {}, batch {} and example {} do not belong together in this run",
                  path, s.epoch, s.step, s.batch, s.first_example));
}

}  // namespace

void RunFiles::agree_on_failure() {
  if (comm_.size() > 1) agree(comm_, failure_, failure_code_);
}

void RunFiles::note(const std::string& text) {
  on_root([&] {
    if (observer_.note) observer_.note(text);
  });
}

void RunFiles::open(const std::string& name, const RunIdentity& identity, const BatchCut& cut, TrainState& state,
                    ParameterStore& store) {
  identity_ = identity;
  together(comm_, [&] {
    if (comm_.rank() == 0) open_here(name, cut, state, store);
  });
  // No other rank need see the files.
  dir_ = broadcast_string(comm_, folder_ ? folder_->dir() : "");
  model_path_ = broadcast_string(comm_, folder_ ? folder_->model_path() : "");
  share_state(comm_, state, store);
}

void RunFiles::open_here(const std::string& name, const BatchCut& cut, TrainState& state, ParameterStore& store) {
  folder_.emplace(settings_.out.empty() ? RunFolder::create_numbered("runs", name)
                                        : RunFolder::create_or_resume(settings_.out, settings_.resume));
  if (settings_.resume) resume(cut, state, store);
  size_t bytes = 0;
  for (const auto& [tensor_name, tensor] : store.tensors()) bytes += tensor.bytes();
  const size_t files =
      settings_.keep == Keep::kLast ? 4 : 7;  // two checkpoints, one being written, the model; best epochs
  folder_->require_free_bytes(files * bytes + (size_t{1} << 20));
  // Also finds out that nothing can be written before any work is done.
  if (state.step == 0) save_checkpoint(state, store);
  last_checkpoint_s_ = now_s();
}

void RunFiles::resume(const BatchCut& cut, TrainState& state, ParameterStore& store) {
  LatestCheckpoint latest = folder_->latest_checkpoint();
  if (!latest.note.empty()) note(latest.note);
  if (!latest.found) {
    note("there is no checkpoint in " + folder_->dir() + " to resume from: starting from the beginning");
    cut_log(folder_->log_path(), -1);
    return;
  }
  state = restore_checkpoint(latest.found->state, latest.found->path, identity_, store);
  require_place_in_run(state, cut, settings_.epochs, latest.found->path);
  saved_best_ = state.best.epoch;
  // Before the first step a log has nothing that is not written again.
  cut_log(folder_->log_path(), state.step > 0 ? state.step : -1);
  note(fmt::format("resuming {} at epoch {}, step {}", folder_->dir(), state.epoch, state.step));
  if (state.ranks == comm_.size() || settings_.norm_sync_group == 0) return;
  note(fmt::format(
      "warning: the run had {} rank{} and has {} now: norms that do not see the whole batch (--norm-sync) see parts of "
      "another size from here on",
      state.ranks, state.ranks == 1 ? "" : "s", comm_.size()));
}

void RunFiles::start_log(const RunStart& start) {
  on_root([&] {
    log_.emplace(folder_->log_path());
    log_->append(start);
  });
}

void RunFiles::log(const LogRecord& record) {
  on_root([&] { log_->append(record); });
}

void RunFiles::sync_log() {
  on_root([&] { log_->sync(); });
}

void RunFiles::log_failure(const EndRecord& record) noexcept {
  if (!log_) return;
  try {
    log_->append(record);
  } catch (const std::exception&) {  // the disk is full for the log, too: the first error is the one to tell
  }
}

void RunFiles::save_checkpoint(TrainState& state, const ParameterStore& store) {
  state.ranks = comm_.size();
  on_root([&] {
    if (saved_step_ == state.step) return;
    const double start = now_s();
    if (log_) log_->sync();
    folder_->save_checkpoint(state.step, checkpoint_of(state, identity_, store));
    // The best of the checkpoint before stays as long as that does: a run may be resumed from it.
    folder_->remove_best_but({state.best.epoch, saved_best_});
    saved_best_ = state.best.epoch;
    saved_step_ = state.step;
    last_checkpoint_s_ = now_s();
    if (!log_) return;
    const std::filesystem::path path = folder_->checkpoint_path(state.step);
    log_->append(CheckpointRecord{.step = state.step,
                                  .epoch = state.epoch,
                                  .file = path.filename().string(),
                                  .seconds = last_checkpoint_s_ - start});
  });
}

void RunFiles::save_best(const TrainState& state, const ParameterStore& store) {
  on_root([&] { write_safetensors(folder_->best_path(state.best.epoch), checkpoint_of(state, identity_, store)); });
}

bool RunFiles::load_best(TrainState& state, ParameterStore& store) {
  TrainState shared = state;
  on_root([&] {
    const TensorFile last = checkpoint_of(state, identity_, store);
    try {
      const std::string path = folder_->best_path(state.best.epoch);
      const TrainState best = restore_checkpoint(read_safetensors(path), path, identity_, store);
      if (best.epoch != state.best.epoch) throw FormatError(fmt::format("'{}' is of epoch {}", path, best.epoch));
      shared.averages = best.averages;
    } catch (const Error& error) {
      restore_checkpoint(last, "the last step", identity_, store);
      note(fmt::format(
          "warning: the values of epoch {}, the best one, cannot be had: {}; those of the last step are saved",
          state.best.epoch, error.what()));
      shared.best.step = -1;  // no step: for the other ranks
    }
  });
  share_state(comm_, shared, store);
  if (shared.best.step < 0) return false;
  state = shared;
  return true;
}

bool RunFiles::checkpoint_is_due() const {
  return comm_.rank() == 0 && settings_.checkpoint_every_s > 0 &&
         now_s() - last_checkpoint_s_ >= settings_.checkpoint_every_s;
}

}  // namespace evenkeel
