// Light or dark: as the system has it, until the switch is used.
import { get } from "/console/dom.js";
import { onLanguage, t } from "/console/language.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const name = () => { get("theme").textContent = t(isDark() ? "theme.light" : "theme.dark"); };

export function startTheme() {
  onLanguage(name);
  system.addEventListener("change", name);
  get("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
}
