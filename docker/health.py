"""Asks a service's metrics port whether it serves: health.py HOST:PORT. Exits 0 if it does."""

import ssl
import sys
import urllib.error
import urllib.request


def main(address: str) -> int:
    """Return 0 if the service at `address` serves, 1 if not, with a line that says why."""
    # It asks its own container, and the certificate names a role, not an address.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    said = ""
    for scheme in ("http", "https"):
        try:
            with urllib.request.urlopen(f"{scheme}://{address}/health", timeout=3, context=context) as answer:
                print(f"{address}: {answer.read().decode().strip()}")
                return 0
        except urllib.error.HTTPError as error:
            said = error.read().decode().strip()
        except OSError as error:
            said = said or str(error)
    print(f"{address}: {said}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
