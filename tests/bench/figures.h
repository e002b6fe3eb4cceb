// What the benches in C++ share: samples of things that are measured in turn, so that a busy machine slows
// all of them alike, and one JSON object a row on stdout, of which tests/bench/run.py makes a table.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/clock.h"

namespace godwit::bench {

/// Of many repetitions. Never empty when it is asked.
class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  [[nodiscard]] size_t count() const { return values_.size(); }
  [[nodiscard]] double at(size_t i) const { return values_[i]; }
  [[nodiscard]] double median() const { return quantile(2); }
  /// 0 is the least, 1 the lower quartile, 4 the most.
  [[nodiscard]] double quantile(size_t quarter) const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    return sorted[(sorted.size() - 1) * quarter / 4];
  }

 private:
  std::vector<double> values_;
};

/// `over` divided by `under`, repetition by repetition.
inline Samples ratio(const Samples& over, const Samples& under) {
  Samples out;
  for (size_t i = 0; i < std::min(over.count(), under.count()); i++) out.add(over.at(i) / under.at(i));
  return out;
}

/// Nanoseconds that `what` takes.
template <typename What>
double nanos_of(const What& what) {
  const Nanos begin = monotonic_now();
  what();
  return static_cast<double>((monotonic_now() - begin).count());
}

/// A row of the result, printed as JSON when it ends.
class Row {
 public:
  explicit Row(std::string_view name) : text_(fmt::format("{{\"row\":\"{}\"", name)) {}
  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;
  ~Row() {
    fmt::print("{}}}\n", text_);
    std::fflush(stdout);
  }

  Row& word(std::string_view key, std::string_view value) {
    text_ += fmt::format(",\"{}\":\"{}\"", key, value);
    return *this;
  }
  Row& number(std::string_view key, double value) {
    text_ += fmt::format(",\"{}\":{:.6g}", key, value);
    return *this;
  }
  /// Median and quartiles, each times `scale`.
  Row& samples(std::string_view key, const Samples& values, double scale = 1) {
    text_ += fmt::format(",\"{}\":{{\"median\":{:.6g},\"p25\":{:.6g},\"p75\":{:.6g},\"runs\":{}}}", key,
                         values.median() * scale, values.quantile(1) * scale, values.quantile(3) * scale,
                         values.count());
    return *this;
  }

 private:
  std::string text_;
};

}  // namespace godwit::bench
