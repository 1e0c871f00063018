// One report: asked for, shown as it is written, stopped, and what follows from its result.
import { get, made } from "/console/dom.js";
import { offerDownloads } from "/console/downloads.js";
import { showFigures } from "/console/figures.js";
import { chosen, onFiles } from "/console/files.js";
import { number, onLanguage, t } from "/console/language.js";
import { ready, request } from "/console/options.js";
import { about, tell } from "/console/problems.js";
import { events, form } from "/console/server.js";
import { startTalk, talkAbout } from "/console/talk.js";
import { mark, marks, paragraph, sections } from "/console/writing.js";

let running = null; // what stops it
let written = null; // of the text that is shown: { text, ranges, task, result }
let withMarks = true;

async function write() {
  if (running || !ready()) return;
  const files = chosen(), fields = request();
  const own = running = new AbortController();
  const mine = written = { text: "", ranges: {}, task: fields.task, result: null, stopped: false };
  tell("report-problem");
  talkAbout(null);
  draw();
  state("waiting");
  try {
    const body = form(files, { ...fields, stream: "true", logprobs: "true" });
    for await (const event of events("/v1/reports", { method: "POST", body, signal: own.signal })) {
      if (event.stage) state(`during.${event.stage}`);
      else if (event.result) {
        const { text, section_ranges: ranges } = event.result;
        Object.assign(mine, { result: event.result, text, ranges });
      } else {
        mine.text += event.text;
        mine.ranges = event.sections;
        state("during.decode");
        words();
      }
    }
  } catch (error) {
    if (written !== mine) return; // another examination is here
    if (error.name === "AbortError") mine.stopped = true;
    else tell("report-problem", () => about(error, files));
  }
  if (mine.result) talkAbout({ files, fields, result: mine.result });
  running = null;
  state(mine.result ? "done" : "");
  draw();
}

// The server's own sentence, and in the page's language what it says.
function notice() {
  const own = written?.result?.notice ?? "";
  get("notice").textContent = own && !own.startsWith(t("notice")) ? `${t("notice")} ${own}` : own || t("notice");
}

let shown = ""; // the state's key
function state(key) {
  shown = key;
  const seconds = written?.result ? number(written.result.timings.total_seconds, 1) : "";
  get("status").textContent = key ? t(key, { seconds }) : "";
  get("write").hidden = running !== null;
  get("stop").hidden = !get("write").hidden;
}

// The text alone, which changes while it is written.
function words() {
  const { text, ranges, task, result } = written;
  const marked = result?.tokens && withMarks ? marks(text, result.tokens) : null;
  get("text").replaceChildren(...sections(text, ranges, task).filter((one) => one.letters.length).flatMap((section) => [
    ...(section.name ? [made("h3", {}, t(section.name))] : []), paragraph(section, marked)]));
}

function draw() {
  get("report").hidden = written === null;
  if (!written) return;
  const { result, stopped } = written;
  words();
  get("report").ariaBusy = String(running !== null);
  get("notes").replaceChildren(...[...(stopped ? [t("stopped")] : []), ...(result?.notes ?? [])].map((one) => made("li", {}, one)));
  get("origin").textContent = result ? t("origin", { model: result.model, bundle: result.bundle_id, call: result.request_id }) : "";
  notice();
  key();
  offerDownloads(result);
  showFigures(result);
  state(shown);
}

function key() {
  const tokens = written.result?.tokens;
  get("unsure-key").hidden = !tokens;
  if (!tokens) return;
  const input = made("input", { type: "checkbox", checked: withMarks, id: "unsure" });
  input.addEventListener("change", () => {
    withMarks = input.checked;
    draw();
    get("unsure").focus();
  });
  const parts = t("unsure.key").split(/(\{\w+\})/).map((part) =>
    ({ "{some}": mark(t("unsure.some"), 0.5), "{few}": mark(t("unsure.few"), 0.1) })[part] ?? part);
  get("unsure-key").replaceChildren(made("label", {}, input, " ", t("unsure.show")), made("span", { hidden: !withMarks }, ...parts));
}

export function startReport() {
  startTalk();
  onLanguage(draw);
  onFiles(() => { // another examination: nothing of the last one stays
    running?.abort();
    running = written = null;
    tell("report-problem");
    talkAbout(null);
    state("");
    draw();
  });
  get("options").addEventListener("submit", (event) => { event.preventDefault(); write(); });
  get("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
    if (event.key === "Escape") running?.abort();
  });
}
