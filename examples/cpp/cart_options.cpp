#include "cart_options.hpp"

#include <cstdlib>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <set>

namespace echovlm_cart {

const char kHelp[] =
    R"(usage: echovlm-cart [--server HOST:PORT] [--image PATH ...] [options]

Ask a report server about ultrasound images. Options have the names that they have in echovlm-report.

  --server HOST:PORT        default 127.0.0.1:50051
  --image PATH ...          image files in order
  --study                   send the images one by one, as a study
  --task TASK               report, findings, diagnosis, question, judge or choice; default: report with images, question without
  --prompt TEXT             replaces the task's default; the question, the statement to judge, or the options
  --system TEXT             a system prompt, in place of the model's own
  --then QUESTION           ask this next, with what was said before; can be given several times
  --language en|zh          default en
  --region REGION           breast, thyroid, liver, kidney, gynecology, heart or vessel, if it is known
  --frames 0,5,9            frames of every cine, counted from 0 (default: its middle one)
  --frames-spaced N         take N evenly spaced frames of a cine
  --allow-mixed-studies     take images of several studies of one patient
  --image-tokens N          most context tokens of a frame, for fewer than the server's bound
  --no-crop                 keep what lies outside a DICOM file's B-mode regions
  --max-new-tokens N        default 512
  --temperature T           0 is greedy, the default
  --top-k N                 0, the default, is no limit
  --top-p P                 default 1
  --repetition-penalty R    default 1
  --seed N                  default 0
  --timeout SECONDS         give up after this time
  --retries N               repeat the call up to N times if the server is busy or unavailable
  --tls-ca F                the authority that signed the server's certificate (PEM); enables TLS
  --tls-certificate F       this client's own certificate (PEM)
  --tls-key F               its key
  --token-file F            holds the bearer token that identifies this client
  --studies                 list your own open studies, and ask about no images
  --end-study ID            end one of your studies by its id in that list
  --help                    print this and exit

exit codes:
  0  the report was written
  2  wrong input, or refused by the server
  3  the server is busy: try again later
  4  the server cannot be reached
  5  the time given by --timeout is over
  130  interrupted
)";

namespace {

[[noreturn]] void at_fault(const std::string& sentence) { throw CallFailed(grpc::StatusCode::INVALID_ARGUMENT, sentence); }

// `least` is allowed too.
double number(const std::string& option, const std::string& text, double least) {
  std::size_t end = 0;
  double value = std::numeric_limits<double>::quiet_NaN();
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
  }
  if (end != text.size() || !(value >= least)) at_fault(option + " must be a number of at least " + std::to_string(least) + ", got " + text + ".");
  return value;
}

std::uint64_t whole(const std::string& option, const std::string& text, std::uint64_t most = std::numeric_limits<std::uint32_t>::max()) {
  std::uint64_t value = 0;
  bool valid = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  try {
    value = valid ? std::stoull(text) : 0;
  } catch (const std::exception&) {
    valid = false;
  }
  if (!valid || value > most) at_fault(option + " must be a whole number from 0 to " + std::to_string(most) + ", got " + text + ".");
  return value;
}

v1::AnatomicalRegion region(const std::string& name) {
  std::string value = "ANATOMICAL_REGION_";
  for (const char letter : name) value += static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  v1::AnatomicalRegion found;
  if (name == "unspecified" || !v1::AnatomicalRegion_Parse(value, &found)) at_fault("There is no --region " + name + ": see --help.");
  return found;
}

void add_frames(v1::FrameSelection& frames, const std::string& listed) {
  for (std::size_t start = 0; start <= listed.size();) {
    const std::size_t comma = std::min(listed.find(',', start), listed.size());
    frames.mutable_indices()->add_index(static_cast<std::uint32_t>(whole("--frames", listed.substr(start, comma - start))));
    start = comma + 1;
  }
}

}  // namespace

Options parse_options(const std::vector<std::string>& words) {
  Options options;
  v1::Sampling& sampling = *options.generation.mutable_sampling();
  const auto path = [](std::string& target) { return [&target](const std::string& v) { target = v; }; };
  const auto whole32 = [](const char* name, const std::string& v) { return static_cast<std::uint32_t>(whole(name, v)); };
  const auto real = [](const char* name, const std::string& v) { return static_cast<float>(number(name, v, 0)); };
  const std::map<std::string, std::function<void(const std::string&)>> with_value{
      {"--server", path(options.server)},
      {"--image", [&](const std::string& v) { options.images.push_back(v); }},
      {"--task",
       [&](const std::string& v) {
         const std::set<std::string> tasks{"report", "findings", "diagnosis", "question", "judge", "choice"};
         if (tasks.count(v) == 0) at_fault("--task must be report, findings, diagnosis, question, judge or choice, got " + v + ".");
         options.task = v;
       }},
      {"--prompt", path(options.prompt)},
      {"--system", path(options.system)},
      {"--then", [&](const std::string& v) { options.then.push_back(v); }},
      {"--image-tokens", [&](const std::string& v) { options.image_tokens = whole32("--image-tokens", v); }},
      {"--language",
       [&](const std::string& v) {
         if (v != "en" && v != "zh") at_fault("--language must be en or zh, got " + v + ".");
         options.generation.set_language(v == "zh" ? v1::LANGUAGE_ZH : v1::LANGUAGE_EN);
       }},
      {"--region", [&](const std::string& v) { options.generation.set_region(region(v)); }},
      {"--frames", [&](const std::string& v) { add_frames(options.frames, v); }},
      {"--frames-spaced", [&](const std::string& v) { options.frames.set_evenly_spaced(whole32("--frames-spaced", v)); }},
      {"--max-new-tokens", [&](const std::string& v) { sampling.set_max_new_tokens(whole32("--max-new-tokens", v)); }},
      {"--temperature", [&](const std::string& v) { sampling.set_temperature(real("--temperature", v)); }},
      {"--top-k", [&](const std::string& v) { sampling.set_top_k(whole32("--top-k", v)); }},
      {"--top-p", [&](const std::string& v) { sampling.set_top_p(real("--top-p", v)); }},
      {"--repetition-penalty", [&](const std::string& v) { sampling.set_repetition_penalty(real("--repetition-penalty", v)); }},
      {"--seed", [&](const std::string& v) { sampling.set_seed(whole("--seed", v, std::numeric_limits<std::uint64_t>::max())); }},
      {"--timeout", [&](const std::string& v) { options.timeout = Seconds(number("--timeout", v, 0.001)); }},
      {"--retries", [&](const std::string& v) { options.retries.attempts = 1 + static_cast<int>(std::min(whole("--retries", v), std::uint64_t{1} << 30)); }},
      {"--tls-ca", path(options.tls_ca)},
      {"--tls-certificate", path(options.tls_certificate)},
      {"--tls-key", path(options.tls_key)},
      {"--token-file", path(options.token_file)},
      {"--end-study", [&](const std::string& v) { options.ended_studies.push_back(v); }},
  };
  const std::map<std::string, std::function<void()>> switches{
      {"--study", [&] { options.study = true; }},
      {"--studies", [&] { options.list_studies = true; }},
      {"--no-crop", [&] { options.keep_whole_frame = true; }},
      {"--allow-mixed-studies", [&] { options.generation.set_allow_mixed_studies(true); }},
  };
  for (auto word = words.begin(); word != words.end();) {
    const std::string& option = *word++;
    if (option == "--help") {
      std::cout << kHelp;
      std::exit(0);
    }
    if (const auto found = switches.find(option); found != switches.end()) {
      found->second();
      continue;
    }
    const auto found = with_value.find(option);
    if (found == with_value.end()) at_fault("There is no option " + option + ": see --help.");
    if (word == words.end()) at_fault(option + " needs a value: see --help.");
    found->second(*word++);
    while (option == "--image" && word != words.end() && word->compare(0, 2, "--") != 0) found->second(*word++);
  }
  if (options.task.empty()) options.task = options.images.empty() ? "question" : "report";
  return options;
}

}  // namespace echovlm_cart
