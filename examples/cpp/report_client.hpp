// A client of the report service, as a cart's software would hold it: one connection, calls that stream, studies, retries.
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

// How this client proves who it is, and knows the server: PEM texts; all empty for a plain-text connection.
struct Credentials {
  std::string server_ca;         // who signed the server's certificate; the connection is encrypted where it is given
  std::string certificate, key;  // this client's own, where the server asks for one
  std::string token;             // sent as a bearer token
};

// When a call is made again: after the server's own delay where it had no room, after a pause that doubles from 0.1 s where no
// server answered and nothing can have happened. A call that changes a study is never made again after the latter.
struct Retries {
  int attempts = 1;            // calls in all
  Seconds longest_pause{30};  // a server that asks for more is not waited for
};

// The call's end where it is not a result; `what()` is one sentence.
struct CallFailed : std::runtime_error {
  CallFailed(grpc::StatusCode code, const std::string& sentence) : std::runtime_error(sentence), code(code) {}
  const grpc::StatusCode code;
};

class ReportClient {
 public:
  // HOST:PORT; connects when the first call is made. Throws CallFailed (FAILED_PRECONDITION) where the token would travel in plain
  // text to another machine.
  explicit ReportClient(const std::string& address, const Credentials& credentials = {}, Retries retries = {});

  // Called with every event of a generation as it comes.
  using OnEvent = std::function<void(const v1::GenerateEvent&)>;
  using Timeout = std::optional<Seconds>;  // over all attempts and the pauses between them

  // Each streams its events and returns the last one's result. Throws CallFailed.
  v1::Result generate_report(const v1::GenerateReportRequest& request, const OnEvent& on_event, Timeout timeout = {});
  v1::Result diagnose(const v1::DiagnoseRequest& request, const OnEvent& on_event, Timeout timeout = {});
  v1::Result answer_question(const v1::AnswerQuestionRequest& request, const OnEvent& on_event, Timeout timeout = {});

  // A study: images are sent as they are taken, and read before they are asked about. Each throws CallFailed.
  std::string begin_study(Timeout timeout = {});
  // `allow_mixed_studies` takes an image whose StudyInstanceUID differs from those before it.
  v1::AddedImage add_image(const std::string& study, const v1::Image& image, Timeout timeout = {}, bool allow_mixed_studies = false);
  void withdraw_image(const std::string& study, std::uint32_t number, Timeout timeout = {});
  // `study` may also be an id that list_studies gave.
  void end_study(const std::string& study, Timeout timeout = {});
  // The client's own open studies, the one that has been unused for longest first.
  v1::ListStudiesResponse list_studies(Timeout timeout = {});

  // How the server's log names the last generation that began; empty where it did not say. For the thread that made the call.
  const std::string& request_id() const { return request_id_; }

  // From any thread: ends the call that is running or pauses before it is made again, and all that come after it, at once. They
  // throw CallFailed (CANCELLED).
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
  std::mutex mutex_;  // of the three below
  std::condition_variable cancelling_;
  grpc::ClientContext* running_ = nullptr;
  bool cancelled_ = false;
};

}  // namespace echovlm_cart
