#include "options.h"

#include <algorithm>
#include <cstdint>
#include <regex>
#include <set>

#include "evenkeel/cli/option_groups.h"
#include "evenkeel/cli/options.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/train/words.h"

namespace py = pybind11;

namespace evenkeel::python {
namespace {

// What Python says in another way, or not at all: the data and the model are arguments, results are objects, threads are not pinned.
const std::set<std::string>& kept_back() {
  static const std::set<std::string> kNames = {
      "data",  "model",   "from",   "json",    "csv",       "html",        "quiet",   "help",   "version",
      "color", "verbose", "resume", "dry-run", "no-report", "tensorboard", "fail-on", "random", "predictions"};
  return kNames;
}

std::string replaced(std::string text, char from, char to) {
  std::replace(text.begin(), text.end(), from, to);
  return text;
}

std::string text_of(const py::handle& value, const std::string& key) {
  if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
    const char* between = key == "resize" || key == "input" ? "x" : ",";
    std::string text;
    for (const py::handle item : value) text += (text.empty() ? "" : between) + text_of(item, key);
    return text;
  }
  if (py::hasattr(value, "__fspath__")) return py::str(value.attr("__fspath__")());
  return py::str(value);
}

}  // namespace

void require_threads(int64_t threads) {
  if (threads < 0 || threads > kMostThreads) {
    throw UsageError("threads is " + std::to_string(threads) + "; expected 0 (all cores) to " +
                     std::to_string(kMostThreads));
  }
}

std::string in_python_words(const std::string& message) {
  static const std::regex kHelp("(; | \\()`evenkeel [a-z ]+--help` shows what there is\\)?");
  static const std::regex kOption("`evenkeel [^`]*`|--([a-z][a-z0-9]*(-[a-z0-9]+)*)");  // commands stay as they are
  std::string text = std::regex_replace(message, kHelp, "");
  const std::string resume = "continue it with --resume, or give another folder with --out";
  if (const size_t at = text.find(resume); at != std::string::npos) {
    text.replace(at, resume.size(),
                 "give another folder as out, or go on from its network with Network.load(folder).fit(...)");
  }
  std::string result;
  auto end = text.cbegin();
  for (std::sregex_iterator it(text.begin(), text.end(), kOption), last; it != last; ++it) {
    result.append(end, it->prefix().second);
    result += (*it)[1].matched ? replaced((*it)[1].str(), '-', '_') : it->str();
    end = (*it)[0].second;
  }
  return result.append(end, text.cend());
}

cli::Arguments arguments_of(const std::string& function, const std::string& command, const py::dict& options,
                            const std::vector<std::string>& positional, const std::string& data) {
  std::vector<std::string> names;
  for (const cli::Option& option : cli::options_of(command)) {
    if (!option.positional && !option.hidden && !kept_back().contains(option.name))
      names.push_back(replaced(option.name, '-', '_'));
  }
  std::vector<std::string> words = {command};
  for (const auto& [key, value] : options) {
    const std::string name = py::str(key), option = replaced(name, '_', '-');
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      const std::string likely = likely_meant(name, names);
      throw UsageError(function + " has no option '" + name + "'" +
                       (likely.empty() ? "" : "; did you mean '" + likely + "'?"));
    }
    if (value.is_none() || value.is(py::bool_(false))) continue;
    if (name == "threads" && PyLong_CheckExact(value.ptr())) {
      int overflow = 0;
      const int64_t threads = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
      require_threads(overflow == 0 ? threads : overflow > 0 ? INT64_MAX : INT64_MIN);
      if (threads == 0) continue;
    }
    words.push_back("--" + option + (value.is(py::bool_(true)) ? "" : "=" + text_of(value, name)));
  }
  if (!data.empty()) words.push_back("--data=" + data);
  words.push_back("--");
  words.insert(words.end(), positional.begin(), positional.end());
  return speaking_python([&] { return cli::parse(words); });
}

}  // namespace evenkeel::python
