"""Runs an image's entrypoint in its root, as a container engine would: for try_in_root.sh.

    unshare --mount --pid --fork enter_root.py [--health ADDRESS] IMAGE.json ROOT SHM MODELS [argument ...]

Mounts /proc, /dev, a tmpfs on /tmp, SHM on /dev/shm and MODELS on /models, makes the root read-only,
changes into it as the image's user, with the image's environment and no capability. With --health,
runs the image's health check, its address replaced.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def mount(*arguments: str) -> None:
    """Run mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def main(arguments: list[str]) -> None:
    """Mount, enter, exec; returns only by an exception."""
    health = ""
    if arguments[0] == "--health":
        health, arguments = arguments[1], arguments[2:]
    image, root, shm, models, *extra = arguments
    facts = json.loads(Path(image).read_text(encoding="utf-8"))
    config = facts["OCIv1"]["config"]
    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    if not health:
        mount("-t", "proc", "proc", f"{root}/proc")
    else:
        mount("--rbind", "/proc", f"{root}/proc")
    mount("--rbind", "/dev", f"{root}/dev")
    mount("--bind", shm, f"{root}/dev/shm")
    mount("-t", "tmpfs", "tmpfs", f"{root}/tmp")
    mount("--bind", models, f"{root}/models")
    mount("-o", "remount,bind,ro", root)
    if health:
        check = facts["Docker"]["config"]["Healthcheck"]["Test"]
        command = [*check[1:-1], health]
    else:
        command = [*config["Entrypoint"], *(extra or config.get("Cmd") or [])]
    environ = dict(entry.partition("=")[::2] for entry in config["Env"])
    user, _, group = config["User"].partition(":")
    os.chroot(root)
    os.chdir(config["WorkingDir"])
    os.setgroups([])
    os.setgid(int(group))
    os.setuid(int(user))
    os.execvpe(command[0], command, environ)


if __name__ == "__main__":
    main(sys.argv[1:])
