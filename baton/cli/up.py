"""`baton up`: a local cluster in the foreground, or with --detach in the background."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from baton import models, runs
from baton.cli.options import Options, at_least, num_bytes, port
from baton.cli.progress import StartDisplay
from baton.cluster import LocalCluster
from baton.errors import ClusterError
from baton.ports import LOOPBACK
from baton.process import ServiceProcess

GRPC_PORT = 50050
HTTP_PORT = 8000
WATCH_S = 0.2


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    options = Options(parser, "up")
    add_cluster_flags(options)
    options.value("--host", LOOPBACK, "address that the gateway listens on")
    options.value(
        "--grpc-port", "", f"gateway's gRPC port; 0: a free one (default {GRPC_PORT}, or a free one)", _port
    )
    options.value(
        "--http-port", "", f"gateway's HTTP port; 0: a free one (default {HTTP_PORT}, or a free one)", _port
    )
    options.value("--gateway-processes", "1", "processes that share the gateway's ports", at_least(1), "N")
    options.value("--certs", "", "folder made by `baton certs`: TLS on every port", metavar="DIR")
    options.value(
        "--keys-file", "", "API keys that the gateway asks for, made by `baton keys`", metavar="FILE"
    )
    options.value("--drain-s", "10", "most seconds that running requests get when it stops", float)
    options.switch("--restart", "start a worker again that has died")
    options.switch("--detach", "return when the cluster is ready; `baton down` stops it")
    parser.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)


def add_cluster_flags(options: Options) -> None:
    """Add the flags that say what a local cluster is made of."""
    options.value("--prefill", "", "prefill workers (default 1, or 0 with --both)", at_least(0), "M")
    options.value("--decode", "", "decode workers (default 1, or 0 with --both)", at_least(0), "N")
    options.value(
        "--both", "", "co-located workers, which do both on one engine (default 0)", at_least(0), "K"
    )
    options.value("--model", models.DEFAULT_MODEL, "directory, GGUF file, or name of a model to fetch")
    options.value("--model-name", "", "name to serve it under (default: the last part of --model)")
    options.value("--tokenizer", "", "directory with tokenizer.json (default: --model's)", metavar="DIR")
    options.value("--gpus", "", "numbers of the GPUs that workers get by turns, as in 0,1", _numbers)
    options.value("--backend", "", "cpu or cuda, of all workers (default cpu)", metavar="NAME")
    options.value(
        "--vault",
        "0",
        "let the workers of each GPU share weights and a KV pool of so many bytes, as in 60G",
        num_bytes,
        "BYTES",
    )
    for kind in ("gateway", "prefill", "decode", "both", "vault"):
        options.value(f"--{kind}-args", "", f"more flags for `baton serve {kind}`, in quotes", shlex.split)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.detach and not args.detached:
        return _detach(args.arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    run = runs.Run()
    cluster: LocalCluster | None = None
    try:
        cluster = start_cluster(args, run, args.host, *_ports(args))
        print(
            f"  OpenAI API  {cluster.http_url}/v1\n  gRPC        {cluster.gateway_address}\n"
            f"  logs        {run.dir}",
            flush=True,
        )
        if args.detached:
            _leave_terminal(run)
        run.publish(cluster.gateway_address, cluster.http_url, cluster.ca)
        return _watch(cluster, args.restart)
    except KeyboardInterrupt:
        return 0
    finally:
        if cluster is not None:
            _stop(cluster, args.drain_s)
        run.close()


def start_cluster(
    args: argparse.Namespace, run: runs.Run, host: str, grpc_port: int, http_port: int
) -> LocalCluster:
    """Start what the flags of `add_cluster_flags` say, with a progress display."""
    started = time.monotonic()
    models.resolve(args.model, models.show_progress)
    with StartDisplay() as display:
        cluster = LocalCluster(
            args.model,
            *worker_counts(args.prefill, args.decode, args.both),
            model_name=args.model_name,
            tokenizer=args.tokenizer,
            host=host,
            grpc_port=grpc_port,
            http_port=http_port,
            gpus=args.gpus,
            backend=args.backend,
            vault_bytes=args.vault,
            gateway_processes=getattr(args, "gateway_processes", 1),
            certs=_path(getattr(args, "certs", "")),
            keys_file=_path(getattr(args, "keys_file", "")),
            gateway_args=args.gateway_args,
            prefill_args=args.prefill_args,
            decode_args=args.decode_args,
            both_args=args.both_args,
            vault_args=args.vault_args,
            run_dir=run.dir,
            on_progress=display.update,
        )
        cluster.start()
    print(f"{cluster.model_name} is ready after {time.monotonic() - started:.1f} s", flush=True)
    return cluster


def _path(text: str) -> Path | None:
    return Path(text).expanduser().resolve() if text else None


def worker_counts(prefill: int | None, decode: int | None, both: int | None) -> tuple[int, int, int]:
    """Return how many workers of each kind to start; None: it was not said.

    Raises:
        ClusterError: together they could not answer.
    """
    usual = 0 if both else 1
    counts = (usual if prefill is None else prefill, usual if decode is None else decode, both or 0)
    if not (counts[0] or counts[2]) or not (counts[1] or counts[2]):
        raise ClusterError("a prefill and a decode worker are needed, or one of --both")
    return counts


def _watch(cluster: LocalCluster, restart: bool) -> int:
    """Report deaths until the gateway, or all workers of a kind, are gone."""
    while True:
        for dead in cluster.new_deaths():
            print(dead.obituary(), file=sys.stderr, flush=True)
            if dead.role == "gateway":
                raise ClusterError("the gateway is gone: stopping")
            if dead.role == "vault":
                raise ClusterError("the vault is gone, and with it the workers' memory: stopping")
            if restart:
                _restart(cluster, dead)
        time.sleep(WATCH_S)


def _restart(cluster: LocalCluster, dead: ServiceProcess) -> None:
    print(f"starting {dead.name} again", file=sys.stderr, flush=True)
    try:
        cluster.restart(dead)
    except ClusterError as error:
        print(error, file=sys.stderr, flush=True)


def _stop(cluster: LocalCluster, drain_s: float) -> None:
    print("stopping", file=sys.stderr, flush=True)
    try:
        cluster.stop(drain_s)
    except KeyboardInterrupt:  # a second Ctrl-C: do not wait for running requests
        cluster.stop(0.0)


def _detach(arguments: list[str]) -> int:
    """Start the same command in a session of its own, and wait until its cluster is ready."""
    argv = [sys.executable, "-m", "baton.cli.main", *arguments, "--detached"]
    before = runs.current()
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    while (cluster := runs.current()) == before or cluster is None or cluster.pid != child.pid:
        if (status := child.poll()) is not None:
            return status or 1
        time.sleep(0.05)
    print("`baton down` stops it", flush=True)
    return 0


def _leave_terminal(run: runs.Run) -> None:
    """Write to a log from here on: whoever started this has gone."""
    with (run.dir / "up.log").open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


def _ports(args: argparse.Namespace) -> tuple[int, int]:
    return _preferred(args.grpc_port, GRPC_PORT), _preferred(args.http_port, HTTP_PORT)


def _preferred(asked: int | None, usual: int) -> int:
    """Return the port that was asked for; else the usual one, if nobody has it; else 0, a free one."""
    if asked is not None:
        return asked
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, usual))
        except OSError:
            return 0
    return usual


def _port(text: str) -> int | None:
    return port(text) if text else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
