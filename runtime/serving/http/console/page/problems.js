// What went wrong, for people: its kind in the page's language, the server's own sentence, and the names of files, which only this page knows.
import { get, made } from "/console/dom.js";
import { now, onLanguage, t } from "/console/language.js";
import { Problem } from "/console/server.js";
import { has } from "/console/words.js";

const told = new Map(); // by element: what makes its lines

// A kind of error or a status code in words; the code itself where the page has none.
export const kind = (code) => (has(`kind.${code}`) ? t(`kind.${code}`) : code);

export function said(error) {
  if (!(error instanceof Problem)) throw error;
  if (error.code === "lost") return t("lost");
  return now() !== "en" && has(`kind.${error.code}`) ? t("problem.kind", { kind: kind(error.code), sentence: error.message }) : error.message;
}

// The place, from 0, of the file that an error is about; -1 where it is about none. Of two that differ it is the later one.
export function placeOf(error, files) {
  const place = Number([...error.message.matchAll(/\bimage (\d+)\b/gi)].at(-1)?.[1] ?? 0) - 1;
  return files[place] ? place : -1;
}

export function about(error, files) {
  const sentence = said(error), place = placeOf(error, files);
  return place < 0 ? sentence : t("problem.file", { sentence, number: place + 1, name: files[place].name });
}

// Shows problems in an element, each made by a function, so that they follow the page's language.
export function tell(id, ...lines) {
  told.set(id, lines);
  draw(id);
}

const draw = (id) => get(id).replaceChildren(...told.get(id).map((line) => made("p", {}, line())));

onLanguage(() => { for (const id of told.keys()) draw(id); });
