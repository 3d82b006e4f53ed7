// Calls to the gateway: the key, errors, and server-sent events over fetch (EventSource cannot send a key).

import { $ } from "./dom.js";

const STORE = "baton-key";
let asking = null;

/** fetch() with the key; asks for one, once for all callers, when the gateway wants it. */
export async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(STORE);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    if (sessionStorage.getItem(STORE) === key && !(await askKey(key ? "This key is not accepted." : ""))) return response;
  }
}

/** Show the dialog; true: there is a new key. */
export function askKey(message = "") {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-error").textContent = message;
    $("key").value = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      asking = null;
      const isGiven = dialog.returnValue === "ok" && $("key").value !== "";
      if (isGiven) sessionStorage.setItem(STORE, $("key").value);
      dialog.returnValue = "";
      resolve(isGiven);
    }, { once: true });
  });
  return asking;
}

/** Throw an Error with the gateway's own words unless the answer is good. */
export async function check(response) {
  if (response.ok) return response;
  let message = `HTTP ${response.status}`;
  try {
    const { error } = await response.json();
    message = `${error.message} (${error.code ?? error.type})`;
  } catch { /* not JSON: the status must do */ }
  const after = response.headers.get("retry-after");
  throw new Error(after ? `${message}; try again in ${after} s` : message);
}

/** Give the data of each event of a response, and when it came (performance.now()). */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const at = performance.now();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data:")) yield { data: part.slice(5).trim(), at };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
