// echovlm-cart: asks a report server about image files and streams the text, in one call or as a study whose images come one by one.
#include <pthread.h>
#include <signal.h>

#include <cctype>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

#include "cart_options.hpp"

namespace {

using namespace echovlm_cart;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) throw CallFailed(grpc::StatusCode::INVALID_ARGUMENT, "The file " + path + " cannot be read.");
  return bytes;
}

Credentials read_credentials(const Options& options) {
  const auto read = [](const std::string& path) { return path.empty() ? "" : read_file(path); };
  std::string token = read(options.token_file);
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back()))) token.pop_back();
  return {read(options.tls_ca), read(options.tls_certificate), read(options.tls_key), token};
}

v1::Image image_of(const Options& options, const std::string& path) {
  v1::Image image;
  image.set_data(read_file(path));
  if (options.frames.selection_case() != v1::FrameSelection::SELECTION_NOT_SET) *image.mutable_frames() = options.frames;
  image.set_keep_whole_frame(options.keep_whole_frame);
  return image;
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
    for (const auto& path : options.images) *request.add_images() = image_of(options, path);
  return request;
}

v1::Result ask(ReportClient& client, const Options& options, const std::string& study) {
  if (options.task == "question") {
    auto request = request_of<v1::AnswerQuestionRequest>(options, study);
    request.set_question(options.prompt);
    return client.answer_question(request, print_text, options.timeout);
  }
  if (options.task == "diagnosis") {
    auto request = request_of<v1::DiagnoseRequest>(options, study);
    request.set_prompt(options.prompt);
    return client.diagnose(request, print_text, options.timeout);
  }
  auto request = request_of<v1::GenerateReportRequest>(options, study);
  request.set_prompt(options.prompt);
  return client.generate_report(request, print_text, options.timeout);
}

v1::Result ask_as_study(ReportClient& client, const Options& options) {
  const std::string study = client.begin_study(options.timeout);
  for (const auto& path : options.images) {
    const v1::AddedImage added =
        client.add_image(study, image_of(options, path), options.timeout, options.generation.allow_mixed_studies());
    std::cerr << path << ": image " << added.number() << ", " << added.frames() << " frame(s)\n";
  }
  const v1::Result result = ask(client, options, study);
  client.end_study(study, options.timeout);
  return result;
}

void print_result(const ReportClient& client, const v1::Result& result) {
  std::cout << "\n\n" << result.notice() << "\n";
  for (const std::string& note : result.notes()) std::cout << "Please check: " << note << "\n";
  for (const v1::Picture& picture : result.pictures()) {
    const bool of_call = picture.file_case() == v1::Picture::kImage;
    for (const std::string& note : picture.notes())
      std::cerr << "image " << (of_call ? picture.image() : picture.study_image()) << ", frame " << picture.frame() << ": " << note << "\n";
  }
  std::cerr << result.usage().generated_tokens() << " tokens in " << result.timings().total_seconds() << " s, " << result.model()
            << ", bundle " << result.bundle_id();
  if (!client.request_id().empty()) std::cerr << ", request " << client.request_id();
  std::cerr << "\n";
}

void end_and_list_studies(ReportClient& client, const Options& options) {
  for (const std::string& study : options.ended_studies) client.end_study(study, options.timeout);
  if (!options.list_studies) return;
  const v1::ListStudiesResponse listed = client.list_studies(options.timeout);
  for (const v1::OpenStudy& study : listed.studies())
    std::cout << study.id() << "  begun " << static_cast<long>(study.age_seconds()) << " s ago, "
              << (study.in_use() ? "in use" : "unused for " + std::to_string(static_cast<long>(study.unused_seconds())) + " s") << ", "
              << study.images() << " image(s)\n";
  std::cout << listed.studies_size() << " of " << listed.max_studies() << " studies are open.\n";
}

// Those of echovlm-report.
int exit_code(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return 3;
    case grpc::StatusCode::UNAVAILABLE:
      return 4;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return 5;
    case grpc::StatusCode::CANCELLED:
      return 130;
    default:
      return 2;
  }
}

// Block SIGINT and SIGTERM, which wait for sigwait from now on; called before gRPC starts its threads, which inherit the mask.
sigset_t blocked_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// While it exists, cancels the client's calls when a signal arrives.
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
  const Options options = parse_options(words);
  const Credentials credentials = read_credentials(options);
  const sigset_t interrupts = blocked_interrupts();
  ReportClient client(options.server, credentials, options.retries);
  const CancelOnSignal cancelling(client, interrupts);
  if (options.list_studies || !options.ended_studies.empty()) {
    end_and_list_studies(client, options);
    return 0;
  }
  print_result(client, options.study ? ask_as_study(client, options) : ask(client, options, ""));
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
