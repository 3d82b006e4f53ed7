#!/usr/bin/env bash
# Builds the images from the Dockerfile and runs them, where there is no Docker engine.
#
#   sudo docker/try_in_root.sh                  # gateway, worker-cpu, model: build, start, ask one question
#   sudo docker/try_in_root.sh worker-cuda      # build other targets only
#
# The base image is a fresh debootstrap. buildah runs the Dockerfile's own steps in it. Each service is
# then started by its image's own entrypoint, user and environment, in a root of its own, read-only,
# with a PID namespace of its own and /dev/shm, /models and the network shared, as compose has it.
#
# Needs root, Debian's buildah and debootstrap. WORK: where all of it lies. BUILD_ARGS: for buildah, such as
# '--build-arg PIP_EXTRA_INDEX_URL=...' for PyTorch's CPU builds. KEEP=1: keep the roots.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${WORK:-/var/tmp/baton-root}
BASE=localhost/baton-base
GRPC=46050 REGISTRY=46051 HTTP=46000 METRICS=46001
export STORAGE_DRIVER=${STORAGE_DRIVER:-overlay} BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$WORK/storage" --runroot "$WORK/run" "$@"; }

make_base() {
  buildah inspect --type image "$BASE" > /dev/null 2>&1 && return
  echo "== base: debootstrap =="
  [ -d "$WORK/base" ] || debootstrap --variant=minbase --include=ca-certificates bookworm "$WORK/base" > "$WORK/debootstrap.log"
  local container
  container=$(buildah from scratch)
  buildah add -q "$container" "$WORK/base" / > /dev/null
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$container"
  buildah commit -q "$container" "$BASE" > /dev/null
  buildah rm "$container" > /dev/null
}

build() { # target
  echo "== build: $1 =="
  local started=$SECONDS
  # shellcheck disable=SC2086  # several arguments
  buildah bud -q --layers --format docker --network host --pull-never --build-arg "BASE=$BASE" ${BUILD_ARGS:-} \
    --ignorefile .dockerignore -f docker/Dockerfile --target "$1" -t "localhost/baton-$1" . > "$WORK/$1.build.log" 2>&1 \
    || { tail -40 "$WORK/$1.build.log"; return 1; }
  local container
  container=$(buildah from --pull-never "localhost/baton-$1")
  local root
  root=$(buildah mount "$container")
  echo "$root" > "$WORK/$1.root"
  buildah inspect --type image "localhost/baton-$1" > "$WORK/$1.json"
  echo "built in $((SECONDS - started)) s: $(du -sm "$root" | cut -f1) MB, $(du -sm "$root/opt/baton" | cut -f1) MB of them Baton's"
}

# start NAME TARGET [argument ...]: the image's entrypoint in its root; the log is NAME.log. Sets PIDS[NAME].
declare -A PIDS
start() {
  local name=$1 target=$2
  shift 2
  setsid unshare --mount --pid --fork --kill-child python3 docker/enter_root.py \
    "$WORK/$target.json" "$(cat "$WORK/$target.root")" "$WORK/shm" "$WORK/models" "$@" \
    > "$WORK/$name.log" 2>&1 &
  PIDS[$name]=$!
}

stop() { # every service: SIGTERM to what runs in the root, as an engine does
  local name
  for name in "${!PIDS[@]}"; do pkill -TERM -P "${PIDS[$name]}" 2> /dev/null || true; done
  for name in "${!PIDS[@]}"; do
    local status=0
    wait "${PIDS[$name]}" || status=$?
    echo "stopped: $name, status $status"
    [ "$status" = 0 ] || FAILED=1
  done
  PIDS=()
}

clean() {
  for name in "${!PIDS[@]}"; do kill -KILL "${PIDS[$name]}" 2> /dev/null || true; done
  mountpoint -q "$WORK/shm" && umount "$WORK/shm"
  [ -n "${KEEP:-}" ] || buildah rm --all > /dev/null 2>&1 || true
}

wait_for() { # seconds, what, command ...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { echo "timed out: $what"; tail -n 20 "$WORK"/*.log; return 1; }
    sleep 0.5
  done
}

try() {
  FAILED=0
  mkdir -p "$WORK/shm" "$WORK/models"
  mount -t tmpfs -o size=2g,mode=1777 tmpfs "$WORK/shm"
  chown 10001:10001 "$WORK/models"
  echo "== start =="
  start model model
  wait "${PIDS[model]}" || { cat "$WORK/model.log"; return 1; }
  unset 'PIDS[model]'
  local model=(--model /models/models/SmolLM2-135M-Instruct --model-name SmolLM2-135M-Instruct)
  local worker=("${model[@]}" --gateway "127.0.0.1:$REGISTRY" --insecure --advertise-host 127.0.0.1 --threads 1)
  start gateway gateway --insecure --grpc-port $GRPC --registry-port $REGISTRY --http-port $HTTP --metrics-port $METRICS "${model[@]}"
  start prefill worker-cpu prefill "${worker[@]}" --port 46060 --metrics-port 46061 --kv-bytes 256M
  start decode worker-cpu decode "${worker[@]}" --port 46070 --metrics-port 46071 --kv-port 46072 --kv-bytes 256M
  wait_for 180 "no worker became ready" curl -fsS "http://127.0.0.1:$HTTP/ready"
  echo "ready: $(grep -h '"ready"' "$WORK/prefill.log" "$WORK/decode.log" | grep -o '"start_s": [0-9.]*' | tr '\n' ' ')"
  echo "== ask =="
  curl -fsS "http://127.0.0.1:$HTTP/v1/chat/completions" -H 'content-type: application/json' \
    -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 12, "temperature": 0}'
  echo
  curl -fsS "http://127.0.0.1:46061/metrics" | grep '^baton_handoff_bytes_total' | tee "$WORK/handoff"
  grep -q 'transport="shared_memory"' "$WORK/handoff" || { echo "the hand-off did not go through shared memory"; FAILED=1; }
  echo "== health checks, as the images have them =="
  local pair
  for pair in "gateway 127.0.0.1:$METRICS" "worker-cpu 127.0.0.1:46061" "worker-cpu 127.0.0.1:46071"; do
    # shellcheck disable=SC2086  # target and address
    set -- $pair
    unshare --mount python3 docker/enter_root.py --health "$2" "$WORK/$1.json" "$(cat "$WORK/$1.root")" "$WORK/shm" "$WORK/models" \
      || FAILED=1
  done
  stop
  [ -z "$(ls -A "$WORK/shm")" ] || { echo "left in /dev/shm: $(ls "$WORK/shm")"; FAILED=1; }
  return $FAILED
}

mkdir -p "$WORK"
trap clean EXIT
make_base
if [ $# -gt 0 ]; then
  for target in "$@"; do build "$target"; done
else
  for target in gateway worker-cpu model; do build "$target"; done
  try
  echo "ok"
fi
