// The language that the page speaks: what is marked with data-t in the page follows it, and so does whoever listens.
import { sentence } from "/console/words.js";

let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const listeners = [];

export const now = () => language;
export const onLanguage = (listener) => listeners.push(listener);
export const t = (key, values = {}) =>
  sentence(key, language).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
export const number = (value, digits = 0) =>
  value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.ariaLabel = t(element.dataset.tLabel);
  for (const element of document.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
  for (const listener of listeners) listener();
}

export function toggleLanguage() {
  language = language === "zh" ? "en" : "zh";
  translate();
}
