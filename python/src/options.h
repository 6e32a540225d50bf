// Options of functions: those of the command line by name, with _ for -, from the same table, with the same checks.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/core/error.h"

namespace evenkeel::python {

// The arguments of `evenkeel COMMAND` for these options and positional words. True is a flag that is given; None and False are left out; lists
// become "A,B,C" (sizes and shapes "HxW"). Throws UsageError: an option that the command does not have, or that Python's function has another
// way to say, with the closest one; a value that the table refuses. `function` begins the messages. `data` is what --data would be; "": left
// out.
cli::Arguments arguments_of(const std::string& function, const std::string& command, const pybind11::dict& options,
                            const std::vector<std::string>& words, const std::string& data = "");

// Throws UsageError unless 0 (all cores) to 1024.
void require_threads(int64_t threads);

// "--learning-rate" as "learning_rate", everywhere in a message.
std::string in_python_words(const std::string& message);

// Calls f(); messages of its errors speak of options as Python has them.
template <class F>
auto speaking_python(F&& f) {
  try {
    return f();
  } catch (const UsageError& error) {
    throw UsageError(in_python_words(error.what()));
  } catch (const FormatError& error) {
    throw FormatError(in_python_words(error.what()));
  } catch (const BackendError& error) {
    throw BackendError(in_python_words(error.what()));
  } catch (const IoError&) {
    throw;  // of the system, about files
  } catch (const Error& error) {
    throw Error(in_python_words(error.what()), error.exit_code());
  }
}

}  // namespace evenkeel::python
