// Runs the cases of tests/support/openai_cases.py with the npm package, and prints what came, a line a case.
//
//   node run.js BASE_URL < cases.json
//
// A case: {"name", "api": "chat" | "plain" | "response", "stream", "fields"}. What came: {"name", "texts",
// "finish", "usage", "calls", "logprobs"} or {"name", "error": {"status", "type", "code", "param"}}.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const apis = {
  chat: (body) => client.chat.completions.create(body),
  plain: (body) => client.completions.create(body),
  response: (body) => client.responses.create(body),
};

const merge = {
  chat(found, { choices, usage }) {
    for (const { index, delta, message, finish_reason, logprobs } of choices) {
      const part = delta ?? message;
      found.texts[index] = (found.texts[index] ?? "") + (part.content ?? "");
      if (finish_reason) found.finish[index] = finish_reason;
      if (logprobs) found.logprobs += logprobs.content.length;
      for (const call of part.tool_calls ?? []) found.calls.push([call.function.name, call.function.arguments]);
    }
    if (usage) found.usage = usage;
  },
  plain(found, { choices, usage }) {
    for (const { index, text, finish_reason, logprobs } of choices) {
      found.texts[index] = (found.texts[index] ?? "") + text;
      if (finish_reason) found.finish[index] = finish_reason;
      if (logprobs) found.logprobs += logprobs.tokens.length;
    }
    if (usage) found.usage = usage;
  },
  response(found, event) {
    if (event.type === "response.output_text.delta") found.texts[0] = (found.texts[0] ?? "") + event.delta;
    const response = event.object === "response" ? event : event.response;
    if (event.object === "response") found.texts[0] = response.output_text;
    if (!response || !["completed", "incomplete"].includes(response.status)) return;
    found.texts[0] ??= "";
    for (const { type, name, arguments: given } of response.output) {
      if (type === "function_call") found.calls.push([name, given]);
    }
    found.finish[0] = response.status;
    found.usage = {
      prompt_tokens: response.usage.input_tokens,
      completion_tokens: response.usage.output_tokens,
      total_tokens: response.usage.total_tokens,
    };
  },
};

async function run({ name, api, stream, fields }) {
  const found = { name, texts: [], finish: [], usage: null, calls: [], logprobs: 0 };
  try {
    const answer = await apis[api]({ ...fields, stream });
    if (!stream) merge[api](found, answer);
    else for await (const part of answer) merge[api](found, part);
    return found;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    const { status, type, code, param } = error;
    return { name, error: { status, type, code, param } };
  }
}

// Leaving a stream early: the connection closes, and the gateway must free what the request holds.
async function leave() {
  const stream = await client.completions.create({
    model: "", prompt: "Once upon a time", max_tokens: 2000, ignore_eos: true, stream: true,
  });
  let parts = 0;
  for await (const part of stream) if ((parts += part.choices.length) >= 3) break;
  return { name: "leave", texts: [], parts };
}

const cases = JSON.parse(readFileSync(0, "utf8"));
const running = new Set();
for (const one of cases) {
  const task = run(one).then((found) => {
    console.log(JSON.stringify(found));
    running.delete(task);
  });
  running.add(task);
  if (running.size >= 8) await Promise.race(running);
}
await Promise.all(running);
console.log(JSON.stringify(await leave()));
