"""Streams an answer from a Baton gateway over gRPC, cancels one, and reads a rich error.

pip install grpcio grpcio-tools grpcio-status
python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. protos/baton/v1/*.proto
python generate.py ADDRESS stream "The capital of France is"
python generate.py ADDRESS cancel
python generate.py ADDRESS error
"""

from __future__ import annotations

import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from baton.v1.inference_pb2 import GenerateRequest
from baton.v1.inference_pb2_grpc import InferenceServiceStub
from baton.v1.sampling_pb2 import FinishReason, SamplingParams


def stream(stub: InferenceServiceStub, prompt: str) -> None:
    """Print an answer as it comes, and how it ended."""
    request = GenerateRequest(text=prompt, sampling=SamplingParams(max_tokens=16, temperature=0))
    for message in stub.Generate(request, timeout=60):
        if message.HasField("delta"):
            print(message.delta.text, end="", flush=True)
        if message.HasField("finished"):
            reason = FinishReason.Name(message.finished.reason)
            print(f"\n[{reason}, {message.finished.usage.completion_tokens} tokens]")


def cancel(stub: InferenceServiceStub) -> None:
    """Leave after three tokens."""
    sampling = SamplingParams(max_tokens=2000, ignore_eos=True)
    call = stub.Generate(GenerateRequest(text="Once upon a time", sampling=sampling), timeout=60)
    tokens = 0
    try:
        for message in call:
            tokens += len(message.delta.token_ids)
            if tokens >= 3:
                call.cancel()  # the workers free what the request holds
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise
        print(f"cancelled after {tokens} tokens")


def error(stub: InferenceServiceStub) -> None:
    """Ask for what cannot be, and print why it cannot."""
    try:
        for _message in stub.Generate(
            GenerateRequest(text="Hello", sampling=SamplingParams(temperature=9)), timeout=60
        ):
            pass
    except grpc.RpcError as failed:
        found = details(failed)
        print(f"status {failed.code().name}")
        for name in ("reason", "field", "retry"):
            print(f"{name} {found.get(name, 'no')}")
        print(f"message {failed.details()}")


def details(failed: grpc.RpcError) -> dict[str, str]:
    """What a gateway says of an error besides its status: see docs/errors.md."""
    found: dict[str, str] = {}
    status = rpc_status.from_call(failed)
    for detail in status.details if status else ():
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            found["reason"] = info.reason
        elif detail.Unpack(bad):
            found["field"] = bad.field_violations[0].field
        elif detail.Unpack(retry):
            found["retry"] = str(retry.retry_delay.ToTimedelta().total_seconds())
    return found


def main(address: str, action: str, *rest: str) -> None:
    """Do one of the three at a gateway."""
    with grpc.insecure_channel(address) as channel:
        {"stream": stream, "cancel": cancel, "error": error}[action](InferenceServiceStub(channel), *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
