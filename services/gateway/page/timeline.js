// Recent requests as bars on a time axis.

import { $, make, seconds } from "./dom.js";
import { listen, nowS, state } from "./live.js";

const NAMES = { queue: "queue", prefill_queue: "prefill queue", chunk: "prefill chunk", handoff: "hand-off", decode: "decode" };
const TICKS = 6;
let selected = "";
let pausedAt = 0;

export function startTimeline() {
  listen(() => { if (!pausedAt) paint(); });
  for (const id of ["window", "align"]) $(id).addEventListener("change", paint);
  $("pause").addEventListener("click", () => {
    pausedAt = pausedAt ? 0 : nowS();
    $("pause").setAttribute("aria-pressed", String(pausedAt > 0));
    $("pause").textContent = pausedAt ? "Go on" : "Pause";
    paint();
  });
  $("rows").addEventListener("click", (event) => select(event.target.closest(".row")?.dataset.key));
  $("rows").addEventListener("keydown", (event) => {
    const rows = [...$("rows").children];
    const at = rows.findIndex((row) => row.dataset.key === selected);
    const to = { ArrowDown: at + 1, ArrowUp: Math.max(at - 1, 0), Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows[to]) return;
    event.preventDefault();
    select(rows[to].dataset.key);
    $("rows").children[to]?.scrollIntoView({ block: "nearest" });
  });
}

/** The bars of a request between two times of its own, as elements. */
export function barsOf(request, fromS, toS, nowOwnS) {
  const span = toS - fromS;
  let chunks = 0;
  return request.bars.map((bar) => {
    const endS = bar.end_s ?? nowOwnS;
    const element = make("i", {
      class: `bar-${bar.kind}${bar.kind === "chunk" && chunks++ % 2 ? " odd" : ""}${bar.failed ? " failed" : ""}`,
      title: describe(bar, endS),
    });
    element.style.left = `${(100 * (bar.begin_s - fromS)) / span}%`;
    element.style.width = `${(100 * Math.max(0, endS - bar.begin_s)) / span}%`;
    return element;
  });
}

function describe(bar, endS) {
  const tokens = bar.tokens ? `, ${bar.tokens} tokens` : "";
  return `${NAMES[bar.kind]}: ${seconds(endS - bar.begin_s)}${tokens}${bar.worker ? `, ${bar.worker}` : ""}${bar.failed ? `, ${bar.failed}` : ""}`;
}

function select(key) {
  selected = key ?? selected;
  paint();
}

export function paint() {
  if ($("view-timeline").hidden) return;
  const span = Number($("window").value);
  const isAligned = $("align").checked;
  const now = pausedAt || nowS();
  const endOf = (request) => request.started_unix_s + (request.total_s ?? now - request.started_unix_s);
  const recent = [...state.requests.values()]
    .filter((request) => isAligned || endOf(request) > now - span)
    .sort((a, b) => b.started_unix_s - a.started_unix_s)
    .slice(0, 150);
  paintAxis(span, isAligned);
  $("rows").replaceChildren(...recent.map((request) => row(request, span, isAligned, now)));
  $("rows").hidden = recent.length === 0;
  $("no-requests").hidden = recent.length > 0;
  $("no-requests").textContent = state.requests.size ? "No request in this window." : "No request yet. Send one in the chat.";
  const chosen = state.requests.get(selected);
  if (chosen) $("rows").setAttribute("aria-activedescendant", `row-${selected}`);
  $("details").replaceChildren(...(chosen ? [details(chosen, now)] : []));
}

function paintAxis(span, isAligned) {
  const marks = [];
  for (let i = 0; i <= TICKS; i += 1) {
    const at = (span * i) / TICKS;
    const mark = make("span", {}, isAligned ? seconds(at) : i === TICKS ? "now" : `−${seconds(span - at)}`);
    mark.style.left = `${(100 * i) / TICKS}%`;
    marks.push(mark);
  }
  $("axis").replaceChildren(...marks);
}

function row(request, span, isAligned, now) {
  const fromS = isAligned ? 0 : now - span - request.started_unix_s;
  const ownNowS = now - request.started_unix_s;
  const result = request.outcome === "running" ? "running" : request.outcome === "ok" ? seconds(request.total_s) : request.reason || request.outcome;
  const label = `${request.prompt_tokens} → ${request.tokens} tokens, first after ${seconds(request.ttft_s)}, ${result}`;
  return make(
    "div", { class: "row", role: "option", id: `row-${request.key}`, "data-key": request.key, "data-request": request.request_id, "aria-selected": String(request.key === selected), "aria-label": label },
    make("span", { class: "label", "aria-hidden": "true" }, make("b", {}, `${request.prompt_tokens} → ${request.tokens}`), `${seconds(request.ttft_s)} · ${result}`),
    make("span", { class: "track", "aria-hidden": "true" }, ...barsOf(request, fromS, fromS + span, ownNowS)),
  );
}

function details(request, now) {
  const ownNowS = now - request.started_unix_s;
  const facts = [
    `request ${request.request_id}`, `${request.prompt_tokens} prompt tokens, ${request.cached_tokens} cached`, `${request.tokens} generated`,
    `TTFT ${seconds(request.ttft_s)}`, request.transport && `KV by ${request.transport}`, request.retries && `${request.retries} retries`, request.outcome, request.reason,
  ];
  return make(
    "table", {}, make("caption", {}, facts.filter(Boolean).join(" · ")),
    make("thead", {}, make("tr", {}, ...["part", "worker", "from", "took", "tokens"].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...request.bars.map((bar) => make(
      "tr", {}, make("td", {}, make("i", { class: `bar-${bar.kind}` }), NAMES[bar.kind]), make("td", {}, bar.worker), make("td", {}, seconds(bar.begin_s)),
      make("td", {}, seconds((bar.end_s ?? ownNowS) - bar.begin_s)), make("td", {}, bar.tokens ? `${bar.tokens}` : bar.failed),
    ))),
  );
}
