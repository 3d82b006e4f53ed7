// The live view of the cluster, shared by all parts of the page.

import { call, check, events } from "./api.js";
import { $ } from "./dom.js";

const LOST_SHOWN_MS = 60_000;
const KEPT_REQUESTS = 300;
const HISTORY = 90;

/** What is known; listeners get it after every event. */
export const state = { model: "", gateway: null, workers: new Map(), requests: new Map(), log: [], offsetS: 0, isConnected: false, isForbidden: false };
const listeners = [];

export function listen(listener) {
  listeners.push(listener);
}

/** The gateway's clock, seconds since 1970. */
export const nowS = () => Date.now() / 1000 + state.offsetS;

/** Follow for ever; a lost connection is taken up again. */
export async function follow() {
  for (;;) {
    try {
      const answer = await call("/cluster/live");
      if (answer.status === 403) await chatOnly();
      const response = await check(answer);
      for await (const { data } of events(response)) {
        take(JSON.parse(data));
        tell(true, "");
      }
      tell(false, "the gateway closed the connection");
    } catch (error) {
      tell(false, error.message);
    }
    await new Promise((done) => setTimeout(done, state.isForbidden ? 10_000 : 1000));
  }
}

/** This key may not look at the cluster: the chat works all the same, once it knows the model's name. */
async function chatOnly() {
  state.isForbidden = true;
  const { data } = await (await check(await call("/v1/models"))).json();
  state.model = data[0]?.id ?? "";
}

function tell(isConnected, message) {
  state.isConnected = isConnected;
  const isReady = isConnected && state.gateway?.is_ready;
  $("status-dot").className = `dot ${isReady ? "good" : isConnected ? "" : "bad"}`;
  $("status-text").textContent = !isConnected ? message : isReady ? "ready" : "no worker of each kind";
  for (const listener of listeners) listener(state);
}

function take(event) {
  state.isForbidden = false;
  state.offsetS = event.now_unix_s - Date.now() / 1000;
  state.model = event.model;
  state.gateway = event.gateway;
  takeWorkers(event.workers);
  for (const request of event.requests) state.requests.set(request.key, request);
  if (state.requests.size > KEPT_REQUESTS) {
    const oldest = [...state.requests.values()].sort((a, b) => a.started_unix_s - b.started_unix_s);
    for (const request of oldest.slice(0, state.requests.size - KEPT_REQUESTS)) state.requests.delete(request.key);
  }
}

function takeWorkers(listed) {
  const now = Date.now();
  const isFirst = state.log.length === 0 && state.workers.size === 0;
  const seen = new Set();
  for (const worker of listed) {
    seen.add(worker.worker_id);
    const known = state.workers.get(worker.worker_id);
    const isNew = !known || known.lostAt || known.incarnation !== worker.incarnation;
    if (isNew && !isFirst) note(`${worker.worker_id} ${known ? "returned" : "joined"}`);
    else if (worker.is_draining && known && !known.is_draining) note(`${worker.worker_id} is draining`);
    const history = isNew ? [] : known.history;
    history.push(worker.tokens_per_s);
    state.workers.set(worker.worker_id, { ...worker, history: history.slice(-HISTORY), lostAt: 0 });
  }
  for (const [id, worker] of state.workers) {
    if (seen.has(id)) continue;
    if (!worker.lostAt) {
      worker.lostAt = now;
      note(`${id} was lost`);
    } else if (now - worker.lostAt > LOST_SHOWN_MS) {
      state.workers.delete(id);
    }
  }
}

function note(text) {
  state.log.unshift({ at: new Date(), text });
  state.log.length = Math.min(state.log.length, 50);
}
