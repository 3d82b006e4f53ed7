// Streams an answer from a Baton gateway over gRPC, cancels one, and reads a rich error.
//
//   npm install
//   node generate.js ADDRESS stream "The capital of France is"
//   node generate.js ADDRESS cancel
//   node generate.js ADDRESS error

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

// Stubs are made at run time; keepCase leaves field names as the .proto files have them.
const PROTOS = process.env.BATON_PROTOS || path.join(__dirname, "../../../protos");
const definition = protoLoader.loadSync("baton/v1/inference.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).baton.v1;

// A request that has no deadline may wait in the queue for as long as the gateway lets it.
const inSeconds = (seconds) => ({ deadline: Date.now() + 1000 * seconds });

async function stream(client, prompt) {
  const call = client.Generate(
    { text: prompt, sampling: { max_tokens: 16, temperature: 0 } },
    inSeconds(60),
  );
  for await (const message of call) {
    if (message.event === "delta") process.stdout.write(message.delta.text);
    if (message.event === "finished") {
      const { reason, usage } = message.finished;
      process.stdout.write(`\n[${reason}, ${usage.completion_tokens} tokens]\n`);
    }
  }
}

async function cancel(client) {
  const call = client.Generate(
    { text: "Once upon a time", sampling: { max_tokens: 2000, ignore_eos: true } },
    inSeconds(60),
  );
  let tokens = 0;
  try {
    for await (const message of call) {
      if (message.event === "delta") tokens += message.delta.token_ids.length;
      if (tokens >= 3) call.cancel(); // the workers free what the request holds
    }
  } catch (error) {
    if (error.code !== grpc.status.CANCELLED) throw error;
    console.log(`cancelled after ${tokens} tokens`);
  }
}

async function error(client) {
  const call = client.Generate({ text: "Hello", sampling: { temperature: 9 } }, inSeconds(60));
  try {
    for await (const message of call) void message;
  } catch (error) {
    const { reason, field, retrySeconds } = details(error);
    console.log(`status ${grpc.status[error.code]}`);
    console.log(`reason ${reason}`);
    console.log(`field ${field}`);
    console.log(`retry ${retrySeconds ?? "no"}`);
    console.log(`message ${error.details}`);
  }
}

// The parts of google/rpc/status.proto and error_details.proto that a gateway sends.
const errors = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; }
    repeated FieldViolation field_violations = 1;
  }
`).root;

// What a gateway says of an error besides its status: see docs/errors.md.
function details(error) {
  const found = {};
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  if (!bytes) return found;
  for (const any of errors.lookupType("google.rpc.Status").decode(bytes).details) {
    const name = any.typeUrl.split("/").pop();
    const detail = errors.lookupType(name).decode(any.value);
    if (name === "google.rpc.ErrorInfo") found.reason = detail.reason;
    if (name === "google.rpc.BadRequest") found.field = detail.fieldViolations[0].field;
    if (name === "google.rpc.RetryInfo")
      found.retrySeconds = Number(detail.retryDelay.seconds) + detail.retryDelay.nanos / 1e9;
  }
  return found;
}

async function main([address, action, prompt]) {
  const client = new InferenceService(address, grpc.credentials.createInsecure());
  await { stream, cancel, error }[action](client, prompt);
  client.close();
}

main(process.argv.slice(2));
