// The frames that the model will see: asked of the server whenever the files, or how they are read, change.
import { chosen, onFiles } from "/console/files.js";
import { clearStrip, fillStrip, startStrip } from "/console/filmstrip.js";
import { get } from "/console/dom.js";
import { number, onLanguage, t } from "/console/language.js";
import { onReading, reading } from "/console/options.js";
import { Problem, asked, form } from "/console/server.js";
import { about, placeOf, tell } from "/console/problems.js";
import { look, startViewer } from "/console/viewer.js";

const PATIENCE = 300; // milliseconds that options rest before pictures are read again
let shown = null, context = 0, request = null, timer = 0;

function sum() {
  const busy = request !== null;
  get("sum").textContent = busy ? t("reading") : !shown ? "" :
    t("sum", { pictures: number(shown.pictures.length), tokens: number(shown.tokens), context: number(context) });
}

async function read() {
  clearTimeout(timer);
  request?.abort();
  const own = request = chosen().length ? new AbortController() : null;
  tell("pictures-problem");
  if (!own) {
    shown = null;
    clearStrip();
    return;
  }
  sum();
  const problems = [];
  let files = chosen();
  try {
    [shown, files] = await readable(files, own.signal, problems);
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = null;
    problems.push(() => about(error, files));
  }
  if (shown) fillStrip(shown.pictures, files.map((one) => one.name));
  else clearStrip();
  tell("pictures-problem", ...problems);
  if (request === own) request = null;
  sum();
}

// Asks for the pictures of all files but those that the server names as wrong, each of which is added to the problems.
async function readable(files, signal, problems) {
  while (files.length) {
    try {
      return [await asked("/v1/pictures", { method: "POST", body: form(files, reading()), signal }), files];
    } catch (error) {
      const sent = files, place = error instanceof Problem ? placeOf(error, sent) : -1;
      if (place < 0) throw error;
      problems.push(() => about(error, sent));
      files = files.filter((_, other) => other !== place);
    }
  }
  return [null, files];
}

export function startPictures(model) {
  context = model.limits.max_sequence;
  startViewer();
  startStrip(look);
  onFiles(read);
  onLanguage(sum);
  onReading(() => {
    clearTimeout(timer);
    timer = setTimeout(read, PATIENCE);
  });
}
