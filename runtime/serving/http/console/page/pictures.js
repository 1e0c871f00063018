// The frames that the model will see: asked of the server whenever the files, or how they are read, change.
import { chosen, onFiles } from "/console/files.js";
import { clearStrip, fillStrip, startStrip } from "/console/filmstrip.js";
import { get } from "/console/dom.js";
import { number, onLanguage, t } from "/console/language.js";
import { onReading, reading } from "/console/options.js";
import { asked, form } from "/console/server.js";
import { about } from "/console/problems.js";
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
  get("pictures-problem").textContent = "";
  if (!own) {
    shown = null;
    clearStrip();
    return;
  }
  sum();
  try {
    shown = await asked("/v1/pictures", { method: "POST", body: form(chosen(), reading()), signal: own.signal });
    fillStrip(shown.pictures, chosen().map((one) => one.name));
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = null;
    clearStrip();
    get("pictures-problem").textContent = about(error, chosen());
  }
  if (request === own) request = null;
  sum();
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
