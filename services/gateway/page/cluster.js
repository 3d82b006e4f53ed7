// The cluster: one card a worker.

import { $, bytes, count, make, sparkLine } from "./dom.js";
import { listen } from "./live.js";

export function startCluster() {
  listen((state) => {
    if ($("view-cluster").hidden) return;
    const workers = [...state.workers.values()].sort((a, b) => a.role.localeCompare(b.role) * -1 || a.worker_id.localeCompare(b.worker_id));
    showTotals(state, workers.filter((worker) => !worker.lostAt));
    $("workers").replaceChildren(...workers.map(card));
    $("no-workers").hidden = workers.length > 0;
    $("log").replaceChildren(...state.log.map((entry) => make("li", {}, `${entry.at.toLocaleTimeString()}  ${entry.text}`)));
  });
}

function showTotals(state, workers) {
  const sum = (field, only = () => true) => workers.filter(only).reduce((total, worker) => total + worker[field], 0);
  const blocks = sum("num_blocks");
  const queried = sum("prefix_query_tokens");
  const facts = [
    ["In flight", state.gateway?.in_flight ?? 0],
    ["Waiting", state.gateway?.waiting ?? 0],
    ["Prefill tok/s", count(sum("tokens_per_s", (worker) => worker.role === "prefill"))],
    ["Decode tok/s", count(sum("tokens_per_s", (worker) => worker.role !== "prefill"))],
    ["KV in use", blocks ? `${((100 * sum("used_blocks")) / blocks).toFixed(0)} %` : "–"],
    ["Prefix hits", queried ? `${((100 * sum("prefix_hit_tokens")) / queried).toFixed(0)} %` : "–"],
    ["KV handed over", bytes(sum("transferred_bytes", (worker) => worker.role === "prefill") || sum("transferred_bytes"))],
  ];
  $("totals").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, `${value}`))));
}

function card(worker) {
  const share = worker.num_blocks ? worker.used_blocks / worker.num_blocks : 0;
  const isLost = worker.lostAt > 0;
  const condition = isLost ? `lost ${Math.round((Date.now() - worker.lostAt) / 1000)} s ago`
    : worker.is_draining ? "draining" : worker.is_suspect ? "in doubt" : "serving";
  const fill = make("i");
  fill.style.width = `${(100 * share).toFixed(1)}%`;
  const hits = worker.prefix_query_tokens ? `${((100 * worker.prefix_hit_tokens) / worker.prefix_query_tokens).toFixed(0)} %` : "–";
  const facts = [
    ["running", count(worker.running)], ["waiting", count(worker.waiting)], ["pending tokens", count(worker.pending_tokens)],
    ["prefix hits", hits], ["preempted", count(worker.preemptions)], [worker.role === "decode" ? "received" : "sent", bytes(worker.transferred_bytes)],
  ];
  return make(
    "article", { class: `worker ${worker.role}${isLost ? " lost" : ""}`, role: "listitem", "data-worker": worker.worker_id, "aria-label": `${worker.role} worker ${worker.worker_id}, ${condition}` },
    make("h3", {}, make("span", { class: `dot ${isLost ? "bad" : worker.is_draining || worker.is_suspect ? "" : "good"}`, "aria-hidden": "true" }),
      worker.worker_id, make("span", { class: "role" }, `${worker.role} · ${worker.device}`)),
    make("div", { class: "kv" }, make("span", {}, "KV blocks"), make("span", { class: "number" }, `${worker.used_blocks} / ${worker.num_blocks}`)),
    make("div", { class: `meter${share > 0.9 ? " full" : ""}`, role: "meter", "aria-label": "KV blocks in use", "aria-valuemin": "0", "aria-valuemax": worker.num_blocks, "aria-valuenow": worker.used_blocks }, fill),
    make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    sparkLine(worker.history, { label: `tokens a second lately; now ${worker.tokens_per_s}` }),
    make("div", { class: "transports" }, `${count(worker.tokens_per_s)} tok/s · ${worker.transports.join(", ") || "no transport used yet"} · ${condition}`),
  );
}
