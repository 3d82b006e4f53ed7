// The chat: one conversation, streamed, with the timings of every token as they came to this browser.

import { call, check, events } from "./api.js";
import { $, make, percentile, seconds, sparkBars } from "./dom.js";
import { listen, state } from "./live.js";
import { barsOf } from "./timeline.js";

const turns = [];
let running = null;

export function startChat() {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("stop").addEventListener("click", () => running?.abort());
  $("clear").addEventListener("click", clear);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
  listen(() => {
    $("model").textContent = state.model || "–";
    for (const turn of turns) showRoute(turn);
  });
}

function clear() {
  running?.abort();
  turns.length = 0;
  $("messages").replaceChildren();
  $("prompt").focus();
}

function parameters() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model: state.model,
    max_tokens: number("max-tokens"),
    temperature: number("temperature"),
    top_p: number("top-p"),
    top_k: number("top-k") || undefined,
    repetition_penalty: number("repetition"),
    seed: number("seed"),
    stop: $("stop-string").value || undefined,
    stream: true,
    stream_options: { include_usage: true },
  };
}

async function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  if (!$("parameters").reportValidity()) return;
  $("prompt").value = "";
  show({ role: "user", text });
  const system = $("system").value.trim();
  const turn = show({ role: "assistant", text: "", gaps: [], ttft: null, usage: null, id: "", finish: "" });
  const past = turns.filter((one) => one !== turn && one.text && !one.error);
  const messages = past.map((one) => ({ role: one.role, content: one.text }));
  if (system) messages.unshift({ role: "system", content: system });
  running = new AbortController();
  setRunning(turn, true);
  try {
    await stream(turn, { ...parameters(), messages }, running.signal);
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else turn.error = error.message;
  }
  running = null;
  setRunning(turn, false);
}

async function stream(turn, body, signal) {
  const begun = performance.now();
  let last = begun;
  const response = await check(await call("/v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  }));
  turn.id = response.headers.get("x-request-id");
  for await (const { data, at } of events(response)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    turn.usage = event.usage ?? turn.usage;
    const choice = event.choices?.[0];
    const delta = choice?.delta;
    const text = (delta?.reasoning_content ?? "") + (delta?.content ?? "");
    if (text) {
      if (turn.ttft === null) turn.ttft = (at - begun) / 1000;
      else turn.gaps.push((at - last) / 1000);
      last = at;
      turn.text += text;
      update(turn);
    }
    turn.finish = choice?.finish_reason ?? turn.finish;
  }
}

function setRunning(turn, isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  turn.element.classList.toggle("running", isRunning);
  update(turn);
  if (!isRunning) $("prompt").focus();
}

function show(turn) {
  turn.body = make("div", { class: "text" });
  turn.figures = make("div", { class: "figures" });
  turn.route = make("span", { class: "route" });
  turn.track = make("span", { class: "track", role: "img" });
  turn.element = make("li", { class: `message ${turn.role}`, "aria-label": turn.role === "user" ? "You" : "Answer" }, turn.body);
  if (turn.role === "assistant") turn.element.append(turn.figures);
  turns.push(turn);
  $("messages").append(turn.element);
  update(turn);
  return turn;
}

let isFrameAsked = new Set();
/** Draw a turn at the next frame, however many tokens come before it. */
function update(turn) {
  if (isFrameAsked.has(turn)) return;
  isFrameAsked.add(turn);
  requestAnimationFrame(() => { isFrameAsked.delete(turn); paint(turn); });
}

function paint(turn) {
  const list = $("messages");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  turn.body.textContent = turn.text;
  if (turn.error) turn.body.append(make("span", { class: "error", role: "alert" }, `${turn.text ? "\n" : ""}${turn.error}`));
  if (turn.role === "assistant") paintFigures(turn);
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function paintFigures(turn) {
  const figure = (name, value, title) => make("span", { title }, `${name} `, make("b", {}, value));
  const { gaps } = turn;
  const parts = [figure("TTFT", seconds(turn.ttft), "time to the first token")];
  if (gaps.length) {
    const total = gaps.reduce((sum, gap) => sum + gap, 0);
    const middle = percentile(gaps, 0.5);
    parts.push(
      figure("ITL", `${seconds(middle)} · p99 ${seconds(percentile(gaps, 0.99))}`, "gaps between tokens: median and 99th percentile"),
      figure("rate", total ? `${(gaps.length / total).toFixed(1)} tok/s` : "–"),
      sparkBars(gaps, { high: 2 * middle, label: `gaps between the last ${Math.min(80, gaps.length)} tokens, longest ${seconds(Math.max(...gaps))}` }),
    );
  }
  if (turn.usage) {
    const cached = turn.usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(
      figure("prompt", `${turn.usage.prompt_tokens}${cached ? ` (${cached} cached)` : ""}`),
      figure("answer", `${turn.usage.completion_tokens}`),
    );
  }
  if (turn.finish) parts.push(figure("end", turn.finish));
  turn.figures.replaceChildren(...parts, turn.route, turn.track);
  showRoute(turn);
}

/** Name the workers, and draw the request's own bars, once the gateway has told of them. */
function showRoute(turn) {
  if (!turn.id || turn.isRouted) return;
  const request = [...state.requests.values()].find((one) => one.request_id === turn.id);
  if (!request) return;
  const of = (kind) => request.bars.findLast((bar) => bar.kind === kind)?.worker;
  const [from, to] = [of("chunk") ?? of("prefill_queue"), of("decode")];
  turn.route.textContent = to ? `${from} → ${to}${request.transport ? ` by ${request.transport}` : ""}` : from ?? "";
  const span = request.total_s ?? 0;
  if (!span) return;
  turn.isRouted = true;
  turn.track.setAttribute("aria-label", `queue, prefill, hand-off and decode over ${seconds(span)}`);
  turn.track.replaceChildren(...barsOf(request, 0, span, span));
}
