// The two pages of the console as tabs: arrow keys move between them.
import { get } from "/console/dom.js";

const NAMES = ["report", "service"];
const listeners = [];
let shown = "report";

export const onTab = (listener) => listeners.push(listener);

export function show(name) {
  shown = name;
  for (const one of NAMES) {
    get(`tab-${one}`).ariaSelected = String(one === name);
    get(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    get(`panel-${one}`).hidden = one !== name;
  }
  get("notice").hidden = name !== "report";
  for (const listener of listeners) listener(name);
}

export function startTabs() {
  for (const name of NAMES) {
    get(`tab-${name}`).addEventListener("click", () => show(name));
    get(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = NAMES[(NAMES.indexOf(shown) + step + NAMES.length) % NAMES.length];
      show(next);
      get(`tab-${next}`).focus();
    });
  }
}
