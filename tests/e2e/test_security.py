"""A cluster with certificates and keys: who gets in, what tenants share, and what logs tell."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from baton.certificates import make_certificates
from baton.client import Client
from baton.cluster import LocalCluster
from baton.connection import Credentials
from baton.errors import RequestError, UnauthenticatedError, UnavailableError
from baton.generation import Answer
from baton.process import child_environ
from baton.v1 import decode_pb2, decode_pb2_grpc
from services.common.keys import Limits, changing, create_key, revoked
from tests.support.tiny_models import TinyLlama, save_tiny_llama

SECRET_PROMPT = "the launch code of the red submarine is seventeen zebras and a half"
SMALL = ("--kv-bytes", "4M", "--threads", "1", "--transports", "zmq_tcp")


@dataclass
class Secure:
    """A running cluster, and keys for it."""

    cluster: LocalCluster
    certs: Path
    keys_file: Path
    alice: str
    alices_other: str
    bob: str
    shared: tuple[str, str]
    operator: str

    def ask(self, key: str, prompt: str) -> Answer:
        with self.client(key) as client:
            return client.complete(prompt, max_tokens=3, temperature=0.0)

    def client(self, key: str) -> Client:
        return Client(self.cluster.gateway_address, Credentials(key, self.cluster.ca))

    def http(self, path: str, key: str = "", body: object = None) -> tuple[int, dict[str, object]]:
        request = urllib.request.Request(self.cluster.http_url + path)
        if key:
            request.add_header("authorization", f"Bearer {key}")
        if body is not None:
            request.data = json.dumps(body).encode()
        context = ssl.create_default_context(cafile=self.cluster.ca)
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def logs(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.cluster.run_dir.glob("*.log"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    certs, keys_file = folder / "certs", folder / "keys.json"
    make_certificates(certs, ["localhost", "127.0.0.1"], 30)
    made = [
        create_key("alice", Limits()),
        create_key("alice", Limits()),
        create_key("", Limits()),
        create_key("c", Limits(), shares_cache=True),
        create_key("d", Limits(), shares_cache=True),
        create_key("ops", Limits(), sees_cluster=True),
    ]
    with changing(keys_file) as ring:
        ring.keys.update({key.key_id: key for _, key in made})
    texts = [text for text, _ in made]
    cluster = LocalCluster(
        str(save_tiny_llama(folder / "tiny", TinyLlama())),
        certs=certs,
        keys_file=keys_file,
        prefill_args=SMALL,
        decode_args=SMALL,
        run_dir=folder / "run",
    )
    with cluster:
        yield Secure(cluster, certs, keys_file, texts[0], texts[1], texts[2], (texts[3], texts[4]), texts[5])


def test_a_key_is_asked_for(secure: Secure) -> None:
    assert secure.ask(secure.alice, "hello").text
    for wrong in ("", "baton_nonsense", secure.alice[:-1] + ("a" if secure.alice[-1] != "a" else "b")):
        with pytest.raises(UnauthenticatedError):
            secure.ask(wrong, "hello")
        status, body = secure.http("/v1/models", wrong)
        assert status == 401
        error = body["error"]
        assert isinstance(error, dict)
        assert (error["type"], error["code"]) == ("authentication_error", "unauthenticated")
    assert secure.http("/v1/models", secure.alice)[0] == 200
    assert secure.http("/health")[0] == 200


def test_only_some_keys_see_the_cluster(secure: Secure) -> None:
    with secure.client(secure.alice) as client, pytest.raises(RequestError, match="may not look"):
        client.workers()
    with secure.client(secure.operator) as client:
        workers = client.workers().workers
    assert len(workers) == 2
    assert not any(worker.info.HasField("kv_peer") for worker in workers)


def test_two_tenants_share_no_block_unless_allowed(secure: Secure) -> None:
    prompt = SECRET_PROMPT * 3
    first = secure.ask(secure.alice, prompt)
    again = secure.ask(secure.alices_other, prompt)
    others = secure.ask(secure.bob, prompt)
    assert first.finished.usage.cached_tokens == 0
    assert again.finished.usage.cached_tokens > 100  # the same tenant's key
    assert again.finished.handoff.skipped_blocks > 5
    assert others.finished.usage.cached_tokens == 0
    assert others.finished.handoff.skipped_blocks == 0
    assert first.text == others.text
    one, two = secure.shared
    assert secure.ask(one, prompt).finished.usage.cached_tokens == 0
    assert secure.ask(two, prompt).finished.usage.cached_tokens > 100


def test_a_tenant_cannot_name_anothers_salt(secure: Secure) -> None:
    prompt = "a prompt of its own, long enough for some blocks of sixteen tokens each" * 2
    secure.ask(secure.alice, prompt)
    with secure.client(secure.bob) as client:
        for salt in ("alice", "tenant\0alice\0\0", ""):
            answer = client.complete(prompt, max_tokens=1, cache_salt=salt)
            assert answer.finished.usage.cached_tokens == 0, salt
            prompt += "!"
            secure.ask(secure.alice, prompt)


def test_blocks_travel_encrypted_from_listed_workers(secure: Secure) -> None:
    answer = secure.ask(secure.alice, "something new for the wire " * 4)
    assert answer.finished.handoff.transport == "zmq_tcp"
    assert answer.finished.handoff.blocks > 0


def test_a_revoked_key_is_refused_within_a_second_or_two(secure: Secure) -> None:
    text, key = create_key("eve", Limits())
    with changing(secure.keys_file) as ring:
        ring.keys[key.key_id] = key
    wait_until(lambda: secure.http("/v1/models", text)[0] == 200)
    with changing(secure.keys_file) as ring:
        ring.keys[key.key_id] = revoked(key)
    wait_until(lambda: secure.http("/v1/models", text)[0] == 401)


def test_limits_of_a_key_hold(secure: Secure) -> None:
    text, key = create_key("limited", Limits(requests_per_minute=2))
    with changing(secure.keys_file) as ring:
        ring.keys[key.key_id] = key
    body = {"prompt": "x", "max_tokens": 1}
    wait_until(lambda: secure.http("/v1/models", text)[0] == 200)
    assert [secure.http("/v1/completions", text, body)[0] for _ in range(3)] == [200, 200, 429]


def test_strangers_do_not_reach_workers_or_the_registry(secure: Secure, tmp_path: Path) -> None:
    make_certificates(tmp_path / "theirs", ["localhost"], 30)
    theirs, ours = tmp_path / "theirs", secure.certs
    worker = next(w for w in secure.cluster.workers if w.role == "decode")
    for certs, name, code in (
        (None, "", grpc.StatusCode.UNAVAILABLE),
        (theirs, "gateway", grpc.StatusCode.UNAVAILABLE),
        (ours, "worker", grpc.StatusCode.UNAUTHENTICATED),  # known, but not as a gateway
    ):
        credentials = Credentials()
        if certs is not None:
            credentials = Credentials(
                "",
                str(ours / "ca.pem"),
                str(certs / f"{name}.pem"),
                str(certs / f"{name}.key"),
                "worker.baton",
            )
        request = decode_pb2.DecodeServiceCancelRequest(request_id="x")
        with credentials.channel(worker.address) as channel:
            cancel = decode_pb2_grpc.DecodeServiceStub(channel).Cancel
            with pytest.raises(grpc.RpcError) as caught:
                cancel(request, timeout=5)
        assert caught.value.code() is code  # type: ignore[attr-defined]
    wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in worker.log.read_text())
    assert '"message": "peer refused"' in worker.log.read_text()


def test_a_worker_with_a_foreign_certificate_does_not_join(secure: Secure, tmp_path: Path) -> None:
    make_certificates(tmp_path / "theirs", ["localhost"], 30)
    intruder = secure.cluster._spawn(
        "intruder",
        "decode",
        [
            *("--gateway", secure.cluster._registry_addresses[0], "--worker-id", "intruder"),
            *("--model", str(secure.cluster._model), "--model-name", secure.cluster.model_name, *SMALL),
            *("--peer-cert", str(tmp_path / "theirs/worker.pem")),
            *("--peer-key", str(tmp_path / "theirs/worker.key")),
            *("--peer-ca", str(secure.certs / "ca.pem")),
        ],
    )
    try:
        wait_until(lambda: "not registered" in intruder.log.read_text().lower(), 60)
        with secure.client(secure.operator) as client:
            assert "intruder" not in {worker.info.worker_id for worker in client.workers().workers}
        assert "CERTIFICATE_VERIFY_FAILED" in secure.cluster.gateway.log.read_text()
    finally:
        intruder.kill()


def test_clients_that_do_not_know_the_authority_refuse_the_gateway(secure: Secure) -> None:
    with pytest.raises(ssl.SSLError), _raw_https(secure.cluster.http_url):
        pass
    with Client(secure.cluster.gateway_address) as client, pytest.raises(UnavailableError):
        client.models()


def test_logs_hold_neither_prompts_nor_secrets(secure: Secure) -> None:
    secure.ask(secure.alice, SECRET_PROMPT)
    secure.http("/v1/completions", secure.alice, {"prompt": SECRET_PROMPT, "max_tokens": 10**9})
    secure.http("/v1/completions", secure.alice, {"prompt": [SECRET_PROMPT, 5]})
    secure.http("/v1/chat/completions", secure.alice, {"messages": [{"role": SECRET_PROMPT}]})
    with secure.client(secure.alice) as client, pytest.raises(RequestError):
        client.complete(SECRET_PROMPT, stop=[SECRET_PROMPT] * 99)
    logs = secure.logs()
    assert '"request ended"' in logs
    assert SECRET_PROMPT[:20] not in logs
    for key in (secure.alice, secure.bob, secure.operator):
        assert key.split("_", 2)[2] not in logs
    assert re.search(r"BEGIN [A-Z ]*PRIVATE", logs) is None


@pytest.mark.parametrize("role", ["gateway", "prefill", "decode", "both"])
def test_nothing_listens_beyond_loopback_without_certificates(role: str, tmp_path: Path) -> None:
    flags = ["--host", "0.0.0.0", "--model", str(tmp_path), "--model-name", "m"]
    done = subprocess.run(
        [sys.executable, "-m", "baton.cli.main", "serve", role, *flags],
        env=child_environ({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "refusing to listen on '0.0.0.0'" in done.stderr
    assert "--peer-cert" in done.stderr
    assert ("--keys-file" in done.stderr) == (role == "gateway")


def wait_until(condition: object, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def _raw_https(url: str):  # type: ignore[no-untyped-def]
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5, context=ssl.create_default_context())
    except urllib.error.URLError as error:
        raise error.reason from None  # type: ignore[misc]
