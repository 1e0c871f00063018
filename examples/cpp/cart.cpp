// echovlm-cart: asks a report server about image files and streams the text, in one call or as a study whose images come one by one.
#include <pthread.h>
#include <signal.h>

#include <cctype>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
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

// What is asked next, and what was said before.
struct Asked {
  std::string task;
  std::string prompt;
  std::string study;              // its images were sent before, one by one
  std::vector<v1::Image> images;  // those of this turn
  v1::Conversation said;
};

// Fills in what the three requests have in common.
template <class Request>
Request request_of(const Options& options, const Asked& asked) {
  Request request;
  *request.mutable_options() = options.generation;
  request.set_study(asked.study);
  if (asked.study.empty()) request.set_image_tokens(options.image_tokens);
  for (const auto& image : asked.images) *request.add_images() = image;
  if (!asked.said.system_prompt().empty() || asked.said.turns_size() > 0) *request.mutable_conversation() = asked.said;
  return request;
}

v1::Result ask(ReportClient& client, const Options& options, const Asked& asked) {
  if (asked.task == "question" || asked.task == "judge" || asked.task == "choice") {
    auto request = request_of<v1::AnswerQuestionRequest>(options, asked);
    request.set_question(asked.prompt);
    if (asked.task == "judge") request.set_form(v1::ANSWER_FORM_TRUE_FALSE);
    if (asked.task == "choice") request.set_form(v1::ANSWER_FORM_LETTER);
    return client.answer_question(request, print_text, options.timeout);
  }
  if (asked.task == "diagnosis") {
    auto request = request_of<v1::DiagnoseRequest>(options, asked);
    request.set_prompt(asked.prompt);
    return client.diagnose(request, print_text, options.timeout);
  }
  auto request = request_of<v1::GenerateReportRequest>(options, asked);
  request.set_prompt(asked.prompt);
  if (asked.task == "findings") request.set_parts(v1::REPORT_PARTS_FINDINGS);
  return client.generate_report(request, print_text, options.timeout);
}

// Adds an answered turn to what was said; each of a study's images is named by the first turn that showed it.
void add_turn(Asked& asked, const v1::Result& result) {
  std::set<std::uint32_t> named;
  for (const v1::Turn& turn : asked.said.turns()) named.insert(turn.study_images().begin(), turn.study_images().end());
  v1::Turn& turn = *asked.said.add_turns();
  turn.set_prompt(result.prompt());
  turn.set_reply(result.text());
  for (const auto& image : asked.images) *turn.add_images() = image;
  for (const v1::Picture& picture : result.pictures())
    if (picture.file_case() == v1::Picture::kStudyImage && named.insert(picture.study_image()).second)
      turn.add_study_images(picture.study_image());
  asked.images.clear();
}

std::string study_of_images(ReportClient& client, const Options& options) {
  const std::string study = client.begin_study(options.timeout, options.image_tokens);
  for (const auto& path : options.images) {
    const v1::AddedImage added =
        client.add_image(study, image_of(options, path), options.timeout, options.generation.allow_mixed_studies());
    std::cerr << path << ": image " << added.number() << ", " << added.frames() << " frame(s)\n";
  }
  return study;
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

// Throws CallFailed (UNIMPLEMENTED) if the server would ignore a part of what is asked.
void check_server(ReportClient& client, const Options& options) {
  const bool recent = options.task == "findings" || options.task == "judge" || options.task == "choice";
  if ((recent || !options.system.empty() || !options.then.empty()) && client.model_info(options.timeout).limits().max_turns() == 0)
    throw CallFailed(grpc::StatusCode::UNIMPLEMENTED,
                     "This server is too old for conversations and for the tasks findings, judge and choice: upgrade it, or ask a "
                     "question by itself.");
}

void answer_all(ReportClient& client, const Options& options) {
  check_server(client, options);
  Asked asked{options.task, options.prompt, "", {}, {}};
  asked.said.set_system_prompt(options.system);
  if (options.study)
    asked.study = study_of_images(client, options);
  else
    for (const auto& path : options.images) asked.images.push_back(image_of(options, path));
  v1::Result result = ask(client, options, asked);
  print_result(client, result);
  for (const std::string& question : options.then) {
    add_turn(asked, result);
    asked.task = "question";
    asked.prompt = question;
    std::cout << "\n";
    result = ask(client, options, asked);
    print_result(client, result);
  }
  if (options.study) client.end_study(asked.study, options.timeout);
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
  answer_all(client, options);
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
