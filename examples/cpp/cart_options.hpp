// The command line of echovlm-cart: the options and exit codes of echovlm-report, as far as a program without Python has them.
#pragma once

#include <string>
#include <vector>

#include "report_client.hpp"

namespace echovlm_cart {

extern const char kHelp[];

struct Options {
  std::string server = "127.0.0.1:50051";
  std::string task;                 // report, findings, diagnosis, question, judge or choice; never empty after parsing
  std::string prompt;               // replaces the task's default; the question where the task is one
  std::string system;               // prompt, in place of the model's own
  std::vector<std::string> then;    // questions that follow, each with what was said before
  std::vector<std::string> images;  // paths, in order
  bool study = false;               // send the images one by one, as a study
  bool list_studies = false;
  std::vector<std::string> ended_studies;
  v1::GenerationOptions generation;
  v1::FrameSelection frames;  // of every cine
  bool keep_whole_frame = false;
  std::uint32_t image_tokens = 0;  // most context tokens of a frame; 0: the server's bound
  ReportClient::Timeout timeout;
  Retries retries;
  std::string tls_ca, tls_certificate, tls_key, token_file;  // paths, empty where not given
};

// Throws CallFailed (INVALID_ARGUMENT) with the sentence to show. Prints the help and exits with 0 for --help.
Options parse_options(const std::vector<std::string>& words);

}  // namespace echovlm_cart
