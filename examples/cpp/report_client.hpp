// A client of the report service for a cart's software: one connection, streamed calls, studies, retries.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "echovlm/v1/report.grpc.pb.h"

namespace echovlm_cart {

namespace v1 = echovlm::v1;
using Seconds = std::chrono::duration<double>;

// How this client identifies itself, and which server it trusts: PEM texts, all empty for a plain-text connection.
struct Credentials {
  std::string server_ca;         // the authority that signed the server's certificate; with it the connection is encrypted
  std::string certificate, key;  // this client's own, if the server asks for one
  std::string token;             // sent as a bearer token
};

// When a call is repeated: after the server's delay if it was busy; after a pause that doubles from 0.1 s if no server answered and it
// cannot have acted on the call. A call that changes a study is repeated only if the server was busy.
struct Retries {
  int attempts = 1;            // how often the call is made at most
  Seconds longest_pause{30};  // if the server asks for a longer one, the call fails
};

// A call that failed; `what()` is one sentence.
struct CallFailed : std::runtime_error {
  CallFailed(grpc::StatusCode code, const std::string& sentence) : std::runtime_error(sentence), code(code) {}
  const grpc::StatusCode code;
};

class ReportClient {
 public:
  // `address` is HOST:PORT; the first call connects. Throws CallFailed (FAILED_PRECONDITION) if the token would be sent in plain text to
  // another machine.
  explicit ReportClient(const std::string& address, const Credentials& credentials = {}, Retries retries = {});

  // Called with every event of a generation as it comes.
  using OnEvent = std::function<void(const v1::GenerateEvent&)>;
  using Timeout = std::optional<Seconds>;  // for all attempts and the pauses between them

  // Each streams its events and returns the last one's result. Throws CallFailed.
  v1::Result generate_report(const v1::GenerateReportRequest& request, const OnEvent& on_event, Timeout timeout = {});
  v1::Result diagnose(const v1::DiagnoseRequest& request, const OnEvent& on_event, Timeout timeout = {});
  v1::Result answer_question(const v1::AnswerQuestionRequest& request, const OnEvent& on_event, Timeout timeout = {});

  // A study: images are sent as they are taken, and read before the question about them. Each throws CallFailed.
  // `image_tokens` bounds the context tokens of its frames; 0: the server's bound.
  std::string begin_study(Timeout timeout = {}, std::uint32_t image_tokens = 0);
  // `allow_mixed_studies` takes an image whose StudyInstanceUID differs from those before it.
  v1::AddedImage add_image(const std::string& study, const v1::Image& image, Timeout timeout = {}, bool allow_mixed_studies = false);
  void withdraw_image(const std::string& study, std::uint32_t number, Timeout timeout = {});
  // `study` may also be an id that list_studies gave.
  void end_study(const std::string& study, Timeout timeout = {});
  // The client's own open studies, the one that has been unused for longest first.
  v1::ListStudiesResponse list_studies(Timeout timeout = {});

  // What is loaded, and the server's limits.
  v1::ModelInfo model_info(Timeout timeout = {});

  // The id of the last generation in the server's log; empty if the server sent none. For the thread that made the call.
  const std::string& request_id() const { return request_id_; }

  // Ends the running call at once, also during a pause between retries, and all later ones: they throw CallFailed (CANCELLED). May be
  // called from any thread.
  void cancel();

 private:
  class Attempts;

  template <class Request, class Method>
  v1::Result stream(Method method, const Request& request, const OnEvent& on_event, Timeout timeout);
  template <class Response, class Request, class Method>
  Response ask(Method method, const Request& request, Timeout timeout);

  std::string address_, token_, request_id_;
  Retries retries_;
  std::unique_ptr<v1::ReportService::Stub> stub_;
  std::mutex mutex_;  // guards the three members below
  std::condition_variable cancelling_;
  grpc::ClientContext* running_ = nullptr;
  bool cancelled_ = false;
};

}  // namespace echovlm_cart
