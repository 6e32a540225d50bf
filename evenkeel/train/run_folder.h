// The folder of one training run: log.jsonl, model.safetensors and the last two
// checkpoint-<step>.safetensors, locked while used.
//   RunFolder folder = RunFolder::create_or_resume("runs/mine", /*resume=*/false);
//   folder.save_checkpoint(400, state);                      // killed now, or while writing: the
//   one before is still whole LatestCheckpoint latest = folder.latest_checkpoint();    //
//   latest.found->step == 400
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/model_io/safetensors.h"

namespace evenkeel {

struct Checkpoint {
  int64_t step = 0;
  std::string path;
  TensorFile state;
};

struct LatestCheckpoint {
  std::optional<Checkpoint> found;
  std::string note;  // which checkpoints were damaged and passed over, for the user; empty when none
};

// "PARENT/MODEL-1", or -2, -3, ...: the first that does not exist. Creates nothing. model: a name
// or a path to a file, of which the name without its extension is taken; characters awkward in a
// folder's name become '-'.
std::string default_run_dir(const std::string& parent, const std::string& model);

class RunFolder {
 public:
  // Opens `dir`, created with its parents when missing, and locks it until this object ends.
  // Removes temporaries that a killed run left. Throws UsageError when another process holds the
  // lock (named by its pid), when `dir` is a file, or when the folder already holds a run and
  // resume is false; IoError when the folder cannot be created or nothing can be written to it.
  static RunFolder create_or_resume(const std::string& dir, bool resume);

  // A new folder default_run_dir(parent, model); two processes that ask at once get two folders.
  // Throws as above.
  static RunFolder create_numbered(const std::string& parent, const std::string& model);

  ~RunFolder();
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&& other) noexcept;

  const std::string& dir() const { return dir_; }
  std::string log_path() const;
  std::string model_path() const;
  std::string best_path(int64_t epoch) const;       // of the values of an epoch that was the best so far
  std::string checkpoint_path(int64_t step) const;  // requires 0 <= step < 10^12 (EK_ASSERT)

  // Throws IoError when the disk has less than `bytes` free: call it before the first step with
  // what the run will write.
  void require_free_bytes(uint64_t bytes) const;

  // Writes checkpoint_path(step) atomically, then removes all checkpoints but this one and the
  // latest before it; those of later steps go too (they were damaged, or the run would not be
  // here). At every moment the last one saved is whole. Throws as write_safetensors; then no older
  // checkpoint was removed.
  void save_checkpoint(int64_t step, const TensorFile& state);

  // Removes the files of best epochs but those of these.
  void remove_best_but(const std::vector<int64_t>& epochs) const;

  // The newest checkpoint that reads completely. Ones with bad bytes are passed over, and named in
  // the note; one that the system cannot read is an IoError, because it may be whole.
  LatestCheckpoint latest_checkpoint() const;

  // Steps of the checkpoints in the folder, whole or not, rising.
  std::vector<int64_t> checkpoint_steps() const;

 private:
  RunFolder(std::string dir, int lock);
  void release() noexcept;
  std::string dir_;
  int lock_ = -1;  // descriptor that holds the flock
};

}  // namespace evenkeel
