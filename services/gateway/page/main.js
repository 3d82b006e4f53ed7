// Ties the page together: views, theme, key.

import { askKey } from "./api.js";
import { startChat } from "./chat.js";
import { startCluster } from "./cluster.js";
import { $ } from "./dom.js";
import { follow } from "./live.js";
import { paint, startTimeline } from "./timeline.js";

const THEMES = { "": ["◐", "as the system"], dark: ["●", "dark"], light: ["○", "light"] };
const tabs = [...document.querySelectorAll('[role="tab"]')];

function open(tab, focus = false) {
  for (const one of tabs) {
    const isOpen = one === tab;
    one.setAttribute("aria-selected", String(isOpen));
    one.tabIndex = isOpen ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !isOpen;
  }
  if (focus) tab.focus();
  history.replaceState(null, "", `#${tab.id.replace("tab-", "")}`);
  paint();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) open(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length], true);
  });
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("baton-theme", name);
  const [sign, words] = THEMES[name];
  $("theme").textContent = sign;
  $("theme").setAttribute("aria-label", `Theme: ${words}`);
}

$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length]);
});
$("key-button").addEventListener("click", () => askKey());

const theme = localStorage.getItem("baton-theme") ?? "";
setTheme(theme in THEMES ? theme : "");
startChat();
startCluster();
startTimeline();
open(tabs.find((tab) => tab.id === `tab-${location.hash.slice(1)}`) ?? tabs[0]);
follow();
