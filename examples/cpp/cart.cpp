// echovlm-cart: asks a report server about image files and streams the text, in one call or as a study whose images come one by one.
#include <pthread.h>
#include <signal.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <thread>
#include <vector>

#include "report_client.hpp"

namespace {

using namespace echovlm_cart;

constexpr char kUsage[] =
    "usage: echovlm-cart [--server HOST:PORT] [--task report|diagnose|ask] [--image FILE]... [--study]\n"
    "                    [--question TEXT] [--language en|zh] [--max-new-tokens N] [--timeout SECONDS] [--retries N]\n"
    "                    [--allow-mixed-studies]\n"
    "                    [--tls-ca F] [--tls-certificate F --tls-key F] [--token-file F]\n"
    "exit codes: 0 done, 2 wrong input or refused, 3 busy, 4 no server, 5 out of time, 130 interrupted, 1 other\n";

struct Options {
  std::string server = "127.0.0.1:50051", task = "report", question;
  std::vector<std::string> images;
  bool study = false;
  v1::GenerationOptions generation;
  ReportClient::Timeout timeout;
  Retries retries;
  std::map<std::string, std::string> files{{"--tls-ca", ""}, {"--tls-certificate", ""}, {"--tls-key", ""}, {"--token-file", ""}};
};

[[noreturn]] void at_fault(const std::string& sentence) { throw CallFailed(grpc::StatusCode::INVALID_ARGUMENT, sentence); }

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) at_fault("The file " + path + " cannot be read.");
  return bytes;
}

double number(const std::string& option, const std::string& text, double least) {
  std::size_t end = 0;
  double value = -1;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
  }
  if (end != text.size() || !(value >= least)) at_fault(option + " must be a number of at least " + std::to_string(least) + ", got " + text + ".");
  return value;
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  const std::map<std::string, std::function<void(const std::string&)>> with_value{
      {"--server", [&](const std::string& v) { options.server = v; }},
      {"--task", [&](const std::string& v) { options.task = v; }},
      {"--image", [&](const std::string& v) { options.images.push_back(v); }},
      {"--question", [&](const std::string& v) { options.question = v; }},
      {"--language",
       [&](const std::string& v) {
         if (v != "en" && v != "zh") at_fault("--language must be en or zh, got " + v + ".");
         options.generation.set_language(v == "zh" ? v1::LANGUAGE_ZH : v1::LANGUAGE_EN);
       }},
      {"--max-new-tokens",
       [&](const std::string& v) {
         options.generation.mutable_sampling()->set_max_new_tokens(static_cast<std::uint32_t>(number("--max-new-tokens", v, 1)));
       }},
      {"--timeout", [&](const std::string& v) { options.timeout = Seconds(number("--timeout", v, 0.001)); }},
      {"--retries", [&](const std::string& v) { options.retries.attempts = 1 + static_cast<int>(number("--retries", v, 0)); }},
  };
  for (auto word = words.begin(); word != words.end(); ++word) {
    if (*word == "--help") {
      std::cout << kUsage;
      std::exit(0);
    }
    if (*word == "--study") {
      options.study = true;
      continue;
    }
    if (*word == "--allow-mixed-studies") {
      options.generation.set_allow_mixed_studies(true);
      continue;
    }
    const auto set = with_value.find(*word);
    const auto file = options.files.find(*word);
    if (set == with_value.end() && file == options.files.end()) at_fault("There is no option " + *word + ": see --help.");
    const std::string& option = *word;
    if (++word == words.end()) at_fault(option + " needs a value: see --help.");
    if (set != with_value.end())
      set->second(*word);
    else
      file->second = *word;
  }
  return options;
}

Credentials read_credentials(const Options& options) {
  const auto read = [&](const char* option) {
    const std::string& path = options.files.at(option);
    return path.empty() ? "" : read_file(path);
  };
  std::string token = read("--token-file");
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back()))) token.pop_back();
  return {read("--tls-ca"), read("--tls-certificate"), read("--tls-key"), token};
}

void print_text(const v1::GenerateEvent& event) {
  if (event.event_case() == v1::GenerateEvent::kText) std::cout << event.text() << std::flush;
}

// Fills in what the three requests have in common; a study's images are sent first, one by one.
template <class Request>
Request request_of(const Options& options, const std::string& study) {
  Request request;
  *request.mutable_options() = options.generation;
  request.set_study(study);
  if (study.empty())
    for (const auto& path : options.images) request.add_images()->set_data(read_file(path));
  return request;
}

v1::Result ask(ReportClient& client, const Options& options, const std::string& study) {
  if (options.task == "report") return client.generate_report(request_of<v1::GenerateReportRequest>(options, study), print_text, options.timeout);
  if (options.task == "diagnose") return client.diagnose(request_of<v1::DiagnoseRequest>(options, study), print_text, options.timeout);
  if (options.task != "ask") at_fault("--task must be report, diagnose or ask, got " + options.task + ".");
  auto request = request_of<v1::AnswerQuestionRequest>(options, study);
  request.set_question(options.question);
  return client.answer_question(request, print_text, options.timeout);
}

v1::Result ask_as_study(ReportClient& client, const Options& options) {
  const std::string study = client.begin_study(options.timeout);
  for (const auto& path : options.images) {
    v1::Image image;
    image.set_data(read_file(path));
    const v1::AddedImage added = client.add_image(study, image, options.timeout, options.generation.allow_mixed_studies());
    std::cerr << path << ": image " << added.number() << ", " << added.frames() << " frame(s)\n";
  }
  const v1::Result result = ask(client, options, study);
  client.end_study(study, options.timeout);
  return result;
}

int exit_code(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      return 2;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return 3;
    case grpc::StatusCode::UNAVAILABLE:
      return 4;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return 5;
    case grpc::StatusCode::CANCELLED:
      return 130;
    default:
      return 1;
  }
}

// SIGINT and SIGTERM, which from now on wait for sigwait; called before gRPC starts threads of its own, which inherit that.
sigset_t blocked_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Cancels the client's calls when a signal comes, as long as it lives.
class CancelOnSignal {
 public:
  CancelOnSignal(ReportClient& client, const sigset_t& signals)
      : thread_([&client, signals] {
          int signal = 0;
          sigwait(&signals, &signal);
          client.cancel();
        }) {}
  ~CancelOnSignal() {
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }

 private:
  std::thread thread_;
};

int run(const std::vector<std::string>& words) {
  const Options options = parse(words);
  const Credentials credentials = read_credentials(options);
  const sigset_t interrupts = blocked_interrupts();
  ReportClient client(options.server, credentials, options.retries);
  const CancelOnSignal cancelling(client, interrupts);
  const v1::Result result = options.study ? ask_as_study(client, options) : ask(client, options, "");
  std::cout << "\n\n" << result.notice() << "\n";
  for (const v1::Picture& picture : result.pictures()) {
    const bool of_call = picture.file_case() == v1::Picture::kImage;
    for (const std::string& note : picture.notes())
      std::cerr << "image " << (of_call ? picture.image() : picture.study_image()) << ", frame " << picture.frame() << ": " << note << "\n";
  }
  std::cerr << result.usage().generated_tokens() << " tokens in " << result.timings().total_seconds() << " s, " << result.model()
            << ", bundle " << result.bundle_id() << "\n";
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    return run({words + 1, words + count});
  } catch (const CallFailed& failed) {
    std::cerr << "error: " << failed.what() << "\n";
    return exit_code(failed.code);
  }
}
