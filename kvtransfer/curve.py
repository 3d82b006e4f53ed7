"""CURVE: who may send blocks, and encryption of what travels over ZeroMQ.

Each process makes its own pair at its start. Public keys go through the registry, over
mutual TLS: a sender learns the receiver's from its `KvPeer`, a receiver learns which
senders' to let in. So a connection proves on both ends that it is with a listed worker,
and whoever can merely reach the port gets no further than the handshake.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from kvtransfer.errors import InvalidPeerError

# A sender that the registry has named stays welcome so long; gateways name it again with each beat.
WELCOME_S = 60.0
KEY_CHARS = 40
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_LOG_EVERY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class CurveKeys:
    """A pair, in Z85.

    Attributes:
        public: for others.
        secret: for nobody else.
    """

    public: str
    secret: str

    @classmethod
    def generate(cls) -> CurveKeys:
        """Make a new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


def check_key(key: str) -> None:
    """Check a public key. InvalidPeerError: not 40 characters of Z85."""
    try:
        if len(key) == KEY_CHARS and len(z85.decode(key)) == 32:
            return
    except (ValueError, KeyError):
        pass
    raise InvalidPeerError(f"curve_public_key: not {KEY_CHARS} characters of Z85")


class Welcome:
    """Public keys of the senders that may connect; may be used from any thread.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._named: dict[str, float] = {}
        self._lock = Lock()

    def name(self, keys: Iterable[str]) -> None:
        """Let these in, for WELCOME_S seconds from now; connections that stand are not cut."""
        now = self._clock()
        with self._lock:
            self._named = {key: at for key, at in self._named.items() if at > now - WELCOME_S}
            self._named.update((key, now) for key in keys)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._named.get(key, float("-inf")) > self._clock() - WELCOME_S


class SparseWarning:
    """Logs at most one warning a second: whoever can reach a port could fill the log."""

    def __init__(self) -> None:
        self._logged = float("-inf")

    def __call__(self, message: str, *args: object) -> None:
        """Log `message` with its arguments, or drop it."""
        now = time.monotonic()
        if now - self._logged > _LOG_EVERY_S:
            self._logged = now
            logger.warning(message, *args)


class Doorkeeper:
    """Answers libzmq's question (ZAP) whether a client's key is welcome; logs those that are not.

    Must be made before the socket that it guards is bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], welcome: Welcome) -> None:
        self._welcome = welcome
        self._warn = SparseWarning()
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(_ZAP_ENDPOINT)

    def answer(self) -> None:
        """Answer one question."""
        # RFC 27: version, request id, domain, address, identity, mechanism, credentials.
        frames = self.socket.recv_multipart(zmq.NOBLOCK)
        version, number, address = frames[0], frames[1], frames[3].decode(errors="replace")
        key = z85.encode(frames[6]).decode() if len(frames) == 7 and frames[5] == b"CURVE" else ""
        if key in self._welcome:
            self.socket.send_multipart([version, number, b"200", b"OK", key.encode(), b""])
            return
        self._warn("refused a sender at %s: its CURVE key %s is not of a listed worker", address, key)
        self.socket.send_multipart([version, number, b"400", b"key not listed", b"", b""])

    def close(self) -> None:
        """Stop."""
        self.socket.close()


class HandshakeMonitor:
    """Logs handshakes that fail, at most one a second: a peer without a key, or with a wrong one."""

    def __init__(self, guarded: zmq.Socket[bytes], what: str, events: int = 0) -> None:
        """Watch a socket.

        Args:
            what: "senders at tcp://...", for the log.
            events: others that `read` returns as well.
        """
        self._guarded = guarded
        self._what = what
        self._warn = SparseWarning()
        self.socket: zmq.Socket[bytes] = guarded.get_monitor_socket(events | _FAILURES)

    def read(self) -> int:
        """Take one event and return it; a failed handshake is logged."""
        event = int(recv_monitor_message(self.socket, zmq.NOBLOCK)["event"])
        if event & _FAILURES:
            self._warn("a CURVE handshake with %s failed: no key, or a wrong one", self._what)
        return event

    def close(self) -> None:
        """Stop; before the guarded socket is closed."""
        self._guarded.disable_monitor()
        self.socket.close(0)


def guard(socket: zmq.Socket[bytes], keys: CurveKeys) -> None:
    """Make a socket demand CURVE from those who connect."""
    socket.curve_server = True
    socket.setsockopt_string(zmq.ZAP_DOMAIN, "kv")
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()


def unlock(socket: zmq.Socket[bytes], keys: CurveKeys, server_key: str) -> None:
    """Make a socket connect with CURVE, to a receiver with this public key and no other."""
    socket.curve_serverkey = server_key.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()
