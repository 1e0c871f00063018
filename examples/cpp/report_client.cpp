#include "report_client.hpp"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <random>

namespace echovlm_cart {
namespace {

using Clock = std::chrono::steady_clock;
constexpr char kRetryAfter[] = "grpc-retry-pushback-ms";
constexpr char kDetails[] = "grpc-status-details-bin";  // of every refusal by the report service itself
constexpr char kRequestId[] = "x-request-id";
constexpr std::size_t kPlainlySmall = 1 << 20;  // bytes; no server finds such a request too large

constexpr char kCancelled[] = "The call was cancelled.";

bool starts_with(const std::string& text, const std::string& prefix) { return text.compare(0, prefix.size(), prefix) == 0; }

// Tells whether a host is localhost, in 127.0.0.0/8 or ::1. Names are not looked up: 127.evil.example is a name.
bool is_loopback_host(const std::string& host) {
  in_addr v4;
  in6_addr v6;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

// Tells whether a text is empty, or a colon and a number.
bool is_port(const std::string& text) {
  return text.empty() || (text[0] == ':' && text.size() > 1 && text.find_first_not_of("0123456789", 1) == std::string::npos);
}

// Tells whether a gRPC target (HOST:PORT, split as gRPC splits it) is on this computer; false for what is not understood.
bool is_loopback_target(std::string target) {
  if (starts_with(target, "unix:") || starts_with(target, "unix-abstract:")) return true;
  for (const char* scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"})
    if (starts_with(target, scheme)) {
      target.erase(0, std::string(scheme).size());
      break;
    }
  if (starts_with(target, "[")) {
    const std::size_t end = target.find(']');
    return end != std::string::npos && is_port(target.substr(end + 1)) && is_loopback_host(target.substr(1, end - 1));
  }
  const std::size_t colon = target.find(':');
  if (colon == target.rfind(':') && colon != std::string::npos)
    return is_port(target.substr(colon)) && is_loopback_host(target.substr(0, colon));
  return is_loopback_host(target);  // an IPv6 address without brackets has no port: ::1:5005 is not ::1 with a port
}

std::shared_ptr<grpc::Channel> connect(const std::string& address, const Credentials& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);              // the server says what is too large
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);     // Attempts decides about them
  const bool local = is_loopback_target(address);
  if (local) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // a proxy could read what is meant for this computer alone
  if (!credentials.server_ca.empty()) {
    const grpc::SslCredentialsOptions files{credentials.server_ca, credentials.key, credentials.certificate};
    return grpc::CreateCustomChannel(address, grpc::SslCredentials(files), arguments);
  }
  if (!credentials.token.empty() && !local)
    throw CallFailed(grpc::StatusCode::FAILED_PRECONDITION,
                     "The token would travel to " + address + " in plain text: give the server's certificate authority.");
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// The server's delay, if it sent one.
std::optional<Seconds> asked_delay(const grpc::ClientContext& context) {
  const auto& trailing = context.GetServerTrailingMetadata();
  const auto found = trailing.find(kRetryAfter);
  if (found == trailing.end()) return std::nullopt;
  const std::string text(found->second.data(), found->second.size());
  const bool number = !text.empty() && text.size() < 10 && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  return number ? std::optional<Seconds>(Seconds(std::stod(text) / 1000)) : std::nullopt;
}

std::string sentence(const grpc::Status& status, const std::string& address) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return "No server answers at " + address + " (" + status.error_message() + ").";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "The server did not finish within the time given.";
    case grpc::StatusCode::CANCELLED:
      return kCancelled;
    default:
      return status.error_message();
  }
}

std::string request_id_of(const grpc::ClientContext& context) {
  const auto& initial = context.GetServerInitialMetadata();
  const auto found = initial.find(kRequestId);
  return found == initial.end() ? "" : std::string(found->second.data(), found->second.size());
}

// What the caller gets for a call that failed, whose request had `bytes`.
CallFailed failure(const grpc::Status& status, const grpc::ClientContext& context, const std::string& address, std::size_t bytes) {
  const bool stated = context.GetServerTrailingMetadata().count(kDetails) > 0;
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && !stated && bytes > kPlainlySmall)
    return {grpc::StatusCode::FAILED_PRECONDITION,
            "The request is too large for the server (" + status.error_message() + "): send fewer or smaller images."};
  return {status.error_code(), stated ? status.error_message() : sentence(status, address)};
}

}  // namespace

// Counts one call's attempts, within one deadline.
class ReportClient::Attempts {
 public:
  Attempts(ReportClient& client, Timeout timeout) : client_(client) {
    if (timeout) deadline_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(*timeout);
  }

  // The context of one attempt; while it exists, `cancel` ends the call.
  class Context {
   public:
    Context(ReportClient& client, const std::optional<Clock::time_point>& deadline) : client_(client) {
      if (deadline)
        call.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(*deadline - Clock::now()));
      if (!client_.token_.empty()) call.AddMetadata("authorization", "Bearer " + client_.token_);
      const std::lock_guard<std::mutex> lock(client_.mutex_);
      if (client_.cancelled_) call.TryCancel();
      client_.running_ = &call;
    }
    ~Context() {
      const std::lock_guard<std::mutex> lock(client_.mutex_);
      client_.running_ = nullptr;
    }
    grpc::ClientContext call;

   private:
    ReportClient& client_;
  };

  Context next() { return {client_, deadline_}; }

  // Returns whether to repeat the call, after waiting until then. `untouched`: the server cannot have acted on it, or it changes nothing.
  // Throws CallFailed (CANCELLED) as soon as the client is cancelled.
  bool pause_after(const grpc::Status& status, const grpc::ClientContext& context, bool untouched) {
    Seconds pause;
    if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
      const auto asked = asked_delay(context);
      if (!asked) return false;  // too large, or the server wants no retry
      pause = *asked;
    } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE && untouched) {
      std::uniform_real_distribution<double> once_to_twice(1, 2);  // so that carts do not all return at once
      pause = Seconds(0.1 * (1 << std::min(made_ - 1, 16)) * once_to_twice(random_));
    } else {
      return false;
    }
    if (made_ >= client_.retries_.attempts || pause > client_.retries_.longest_pause) return false;
    if (deadline_ && Clock::now() + pause >= *deadline_) return false;
    ++made_;
    std::unique_lock<std::mutex> lock(client_.mutex_);
    if (client_.cancelling_.wait_for(lock, pause, [this] { return client_.cancelled_; }))
      throw CallFailed(grpc::StatusCode::CANCELLED, kCancelled);
    return true;
  }

 private:
  ReportClient& client_;
  std::optional<Clock::time_point> deadline_;
  int made_ = 1;
  std::mt19937 random_{std::random_device{}()};
};

ReportClient::ReportClient(const std::string& address, const Credentials& credentials, Retries retries)
    : address_(address),
      token_(credentials.token),
      retries_(retries),
      stub_(v1::ReportService::NewStub(connect(address, credentials))) {}

template <class Request, class Method>
v1::Result ReportClient::stream(Method method, const Request& request, const OnEvent& on_event, Timeout timeout) {
  Attempts attempts(*this, timeout);
  while (true) {
    auto context = attempts.next();
    const auto reader = (stub_.get()->*method)(&context.call, request);
    v1::Result result;
    bool begun = false;
    for (v1::GenerateEvent event; reader->Read(&event);) {
      if (!begun) request_id_ = request_id_of(context.call);
      begun = true;
      on_event(event);
      if (event.has_result()) result = event.result();
    }
    const grpc::Status status = reader->Finish();
    if (status.ok()) return result;
    if (begun || !attempts.pause_after(status, context.call, true))
      throw failure(status, context.call, address_, request.ByteSizeLong());
  }
}

template <class Response, class Request, class Method>
Response ReportClient::ask(Method method, const Request& request, Timeout timeout) {
  Attempts attempts(*this, timeout);
  while (true) {
    auto context = attempts.next();
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context.call, request, &response);
    if (status.ok()) return response;
    if (!attempts.pause_after(status, context.call, false)) throw failure(status, context.call, address_, request.ByteSizeLong());
  }
}

v1::Result ReportClient::generate_report(const v1::GenerateReportRequest& request, const OnEvent& on_event, Timeout timeout) {
  return stream(&v1::ReportService::Stub::GenerateReport, request, on_event, timeout);
}

v1::Result ReportClient::diagnose(const v1::DiagnoseRequest& request, const OnEvent& on_event, Timeout timeout) {
  return stream(&v1::ReportService::Stub::Diagnose, request, on_event, timeout);
}

v1::Result ReportClient::answer_question(const v1::AnswerQuestionRequest& request, const OnEvent& on_event, Timeout timeout) {
  return stream(&v1::ReportService::Stub::AnswerQuestion, request, on_event, timeout);
}

std::string ReportClient::begin_study(Timeout timeout, std::uint32_t image_tokens) {
  v1::BeginStudyRequest request;
  request.set_image_tokens(image_tokens);
  return ask<v1::Study>(&v1::ReportService::Stub::BeginStudy, request, timeout).id();
}

v1::AddedImage ReportClient::add_image(const std::string& study, const v1::Image& image, Timeout timeout,
                                       bool allow_mixed_studies) {
  v1::AddImageRequest request;
  request.set_study(study);
  *request.mutable_image() = image;
  request.set_allow_mixed_studies(allow_mixed_studies);
  return ask<v1::AddedImage>(&v1::ReportService::Stub::AddImage, request, timeout);
}

void ReportClient::withdraw_image(const std::string& study, std::uint32_t number, Timeout timeout) {
  v1::WithdrawImageRequest request;
  request.set_study(study);
  request.set_number(number);
  ask<v1::WithdrawImageResponse>(&v1::ReportService::Stub::WithdrawImage, request, timeout);
}

void ReportClient::end_study(const std::string& study, Timeout timeout) {
  v1::EndStudyRequest request;
  request.set_study(study);
  ask<v1::EndStudyResponse>(&v1::ReportService::Stub::EndStudy, request, timeout);
}

v1::ListStudiesResponse ReportClient::list_studies(Timeout timeout) {
  return ask<v1::ListStudiesResponse>(&v1::ReportService::Stub::ListStudies, v1::ListStudiesRequest(), timeout);
}

v1::ModelInfo ReportClient::model_info(Timeout timeout) {
  return ask<v1::ModelInfo>(&v1::ReportService::Stub::GetModelInfo, v1::GetModelInfoRequest(), timeout);
}

void ReportClient::cancel() {
  const std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = true;
  cancelling_.notify_all();
  if (running_) running_->TryCancel();
}

}  // namespace echovlm_cart
