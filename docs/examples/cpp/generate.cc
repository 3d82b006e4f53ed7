// Streams an answer from a Baton gateway over gRPC, cancels one, and reads a rich error.
//
//   make
//   build/generate ADDRESS stream "The capital of France is"
//   build/generate ADDRESS cancel
//   build/generate ADDRESS error

#include <chrono>
#include <iostream>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "baton/v1/inference.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

using baton::v1::FinishReason_Name;
using baton::v1::GenerateRequest;
using baton::v1::GenerateResponse;
using baton::v1::InferenceService;

namespace {

// A request that has no deadline may wait in the queue for as long as the gateway lets it.
void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
}

int Fail(const grpc::Status& status) {
  std::cerr << status.error_code() << ": " << status.error_message() << "\n";
  return 1;
}

int Stream(InferenceService::Stub& stub, const std::string& prompt) {
  grpc::ClientContext context;
  SetDeadline(context);
  GenerateRequest request;
  request.set_text(prompt);
  request.mutable_sampling()->set_max_tokens(16);
  request.mutable_sampling()->set_temperature(0);
  const auto reader = stub.Generate(&context, request);
  GenerateResponse response;
  while (reader->Read(&response)) {
    if (response.has_delta()) std::cout << response.delta().text() << std::flush;
    if (response.has_finished())
      std::cout << "\n[" << FinishReason_Name(response.finished().reason()) << ", "
                << response.finished().usage().completion_tokens() << " tokens]\n";
  }
  const grpc::Status status = reader->Finish();
  return status.ok() ? 0 : Fail(status);
}

int Cancel(InferenceService::Stub& stub) {
  grpc::ClientContext context;
  SetDeadline(context);
  GenerateRequest request;
  request.set_text("Once upon a time");
  request.mutable_sampling()->set_max_tokens(2000);
  request.mutable_sampling()->set_ignore_eos(true);
  const auto reader = stub.Generate(&context, request);
  GenerateResponse response;
  int tokens = 0;
  while (reader->Read(&response)) {
    tokens += response.delta().token_ids_size();
    if (tokens >= 3) context.TryCancel();  // the workers free what the request holds
  }
  const grpc::Status status = reader->Finish();
  if (status.error_code() != grpc::StatusCode::CANCELLED) return Fail(status);
  std::cout << "cancelled after " << tokens << " tokens\n";
  return 0;
}

// What a gateway says of an error besides its status: see docs/errors.md.
void PrintDetails(const grpc::Status& failed) {
  std::string reason = "no", field = "no", retry = "no";
  google::rpc::Status status;
  status.ParseFromString(failed.error_details());
  for (const auto& detail : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo delay;
    if (detail.UnpackTo(&info)) reason = info.reason();
    if (detail.UnpackTo(&bad)) field = bad.field_violations(0).field();
    if (detail.UnpackTo(&delay)) retry = delay.retry_delay().ShortDebugString();
  }
  std::cout << "reason " << reason << "\nfield " << field << "\nretry " << retry << "\n";
}

int Error(InferenceService::Stub& stub) {
  grpc::ClientContext context;
  SetDeadline(context);
  GenerateRequest request;
  request.set_text("Hello");
  request.mutable_sampling()->set_temperature(9);
  const auto reader = stub.Generate(&context, request);
  GenerateResponse response;
  while (reader->Read(&response)) continue;
  const grpc::Status status = reader->Finish();
  if (status.error_code() != grpc::StatusCode::INVALID_ARGUMENT) return Fail(status);
  std::cout << "status INVALID_ARGUMENT\n";
  PrintDetails(status);
  std::cout << "message " << status.error_message() << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate ADDRESS stream PROMPT | cancel | error\n";
    return 2;
  }
  const std::string action = argv[2];
  const auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  const auto stub = InferenceService::NewStub(channel);
  if (action == "stream") return Stream(*stub, argc > 3 ? argv[3] : "Hello");
  return action == "cancel" ? Cancel(*stub) : Error(*stub);
}
