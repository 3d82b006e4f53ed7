"""Which of the cluster's own services may call, by the name in the certificate that they show."""

from __future__ import annotations

import logging

from services.common.errors import BatonError, ErrorReason
from services.common.interceptor import Access, Context
from services.common.logs import log
from services.common.tls import SAN_KEY, PeerRole, peer_name

_logger = logging.getLogger(__name__)


def require_peer(*roles: PeerRole) -> Access:
    """Return what lets in callers whose certificate names one of `roles`; refusals are logged.

    gRPC has checked before that the cluster's authority signed it.
    """
    names = {peer_name(role).encode() for role in roles}

    def check(method: str, context: Context) -> None:
        shown = context.auth_context().get(SAN_KEY, ())
        if names.isdisjoint(shown):
            told = ", ".join(name.decode(errors="replace") for name in shown) or "nobody"
            log(
                _logger,
                logging.WARNING,
                "peer refused",
                method=method,
                peer=context.peer(),
                certificate=told,
            )
            raise BatonError(
                ErrorReason.UNAUTHENTICATED,
                f"this port is for {' and '.join(roles)} services; the certificate names {told}",
            )

    return check
