// Ranks: processes that train one network together, each with a part of every batch. Started by mpirun, srun or an MPIJob; in tests, threads.
//
//   Comm& comm = world();                      // one rank, unless a launcher started this process
//   comm.all_gather(mine, bytes_of_ranks, all);
//
// Collectives: every rank calls the same ones in the same order, with sizes that agree, from the thread that made the Comm (MPI: the main
// thread). They return on all ranks or throw: a rank that waits longer than the timeout throws RankError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/core/shard.h"

namespace evenkeel {

// Other ranks are gone or do not answer. Exit code 4. The message names who is missing, where the others wait, and what to try.
class RankError : public Error {
 public:
  explicit RankError(const std::string& message) : Error(message, kExitSystem) {}
};

// What went wrong on one rank, or on some, and ends the run on all: agree() throws it everywhere, so that nobody has to be aborted.
class AgreedError : public Error {
 public:
  AgreedError(const std::string& message, int exit_code) : Error(message, exit_code) {}
};

// What a rank is doing, for the message when somebody waits for it. `what` must outlive its use (a string literal, a node's name).
struct Place {
  int64_t step = 0;
  const char* what = "";
};

// Since the Comm was made.
struct CommTotals {
  int64_t calls = 0;     // collectives; a sum counts when it is started
  int64_t bytes = 0;     // that this rank gave
  double waiting_s = 0;  // inside blocking calls
};

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // The name of this rank's machine.
  virtual const std::string& host() const = 0;
  // Cores that this rank may use: those it was bound to when it began, shared evenly with ranks that are bound to the same ones. At least 1.
  virtual int cores() const = 0;

  // bytes[r]: what rank r gives, 0 allowed, the same list on every rank; receive: all of it in the order of the ranks. `send` may be this
  // rank's place in it.
  virtual void all_gather(const void* send, std::span<const size_t> bytes, void* receive) = 0;

  // Begins values += those of all other ranks, element by element; the same bits on every rank, in an order of additions that may depend on
  // the number of ranks. Returns an id for wait(). `values` must not be touched before wait(id) has returned. Several may be under way.
  virtual int start_sum(std::span<float> values) = 0;
  virtual void wait(int id) = 0;
  // Lets what was started go on; cheap. Call it now and then between start_sum and wait.
  virtual void progress() = 0;

  // Assigns `bytes` on every rank from rank `root`.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void barrier() = 0;
  // Collective. Ranks that give the same `group` get a Comm of their own, in the order of their ranks here.
  virtual std::unique_ptr<Comm> split(int group) = 0;
  // Ends all ranks, at once, with that exit code. Where ranks are threads: makes their collectives throw.
  [[noreturn]] virtual void abort(int exit_code) = 0;

  virtual CommTotals totals() const = 0;

  // Seconds that a collective may wait for others; <= 0: for ever. The default is 300.
  void set_timeout(double seconds) { timeout_s_ = seconds; }
  double timeout_s() const { return timeout_s_; }
  // Assigned by whoever is about to wait.
  Place place;

 private:
  double timeout_s_ = 300;
};

// A Comm of one rank: collectives are copies.
std::unique_ptr<Comm> one_rank();

// The ranks of this process' launcher, or one rank where there is none; made on the first call, which must come from the main thread, and
// ended when the program exits. Throws BackendError when a launcher started several ranks of a program that was built without MPI.
Comm& world();
// From here on world() is one rank: for work that the ranks of a launcher do not share. They meet again when the program ends.
void leave_world();
// True when this program was built with MPI, and the name of that: "Open MPI v4.1.4", or "".
bool has_mpi();
std::string mpi_library();

namespace internal {
Comm& ranks_of_launcher();  // what world() is until leave_world()
}

// --- On top of the collectives; collective, too ---

// Every rank's bytes, by rank; their lengths may differ.
std::vector<std::string> gather_strings(Comm& comm, const std::string& mine);
// Rank 0's string, on every rank.
std::string broadcast_string(Comm& comm, const std::string& mine);
// True when any rank says so.
bool any_rank(Comm& comm, bool mine);
// One sentence for the user when every rank is bound to a single core of a machine that has at least twice as many cores as ranks, which is
// mpirun's default for two ranks; "" where the ranks have what they can use. The same on every rank. Before threads are pinned.
std::string binding_advice(Comm& comm);

// Runs `action` on every rank; it may call collectives only where no rank can have thrown before. Where it throws on some ranks, throws
// AgreedError on all: the first such rank's message, with rank and host in front of it when not all ranks failed alike, and its exit code.
template <class F>
void together(Comm& comm, F&& action);
// What together() does behind the action: `message` "" where all is well.
void agree(Comm& comm, const std::string& message, int exit_code);

template <class F>
void together(Comm& comm, F&& action) {
  std::string message;
  int exit_code = kExitGood;
  try {
    action();
  } catch (const RankError&) {
    throw;
  } catch (const AgreedError&) {
    throw;
  } catch (const Error& error) {
    if (comm.size() == 1) throw;
    message = error.what();
    exit_code = error.exit_code();
  } catch (const std::exception& error) {
    if (comm.size() == 1) throw;
    message = error.what();
    exit_code = kExitSystem;
  }
  if (comm.size() > 1) agree(comm, message, exit_code);
}

}  // namespace evenkeel
