// What went wrong, for people: the server calls files by their number, this page knows their names.
import { t } from "/console/language.js";
import { Problem } from "/console/server.js";

export function about(error, files) {
  if (!(error instanceof Problem)) throw error;
  const place = Number(/\bimage (\d+)\b/.exec(error.message)?.[1]);
  const named = files[place - 1];
  return named ? t("problem.file", { sentence: error.message, number: place, name: named.name }) : error.message;
}
