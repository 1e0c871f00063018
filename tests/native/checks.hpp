// Counts what holds and what does not.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

class Checks {
 public:
  void expect(bool holds, const std::string& what) {
    ++made_;
    if (holds) return;
    ++failed_;
    std::printf("FAILED: %s\n", what.c_str());
  }

  int report(const char* what) const {
    std::printf("%s: %d checks, %d failed\n", what, made_, failed_);
    return failed_;
  }

 private:
  int made_ = 0, failed_ = 0;
};

inline double relative_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    difference += std::pow(actual[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / norm);
}
