// What is asked of the model, and how the files are read.
import { get, made } from "/console/dom.js";
import { chosen, onFiles } from "/console/files.js";
import { now, onLanguage, t } from "/console/language.js";

const TASKS = ["report", "findings", "impression", "question", "judge", "choice"];
const ASKING = ["question", "judge", "choice"]; // these need words of the user's
const REGIONS = ["", "breast", "thyroid", "liver", "kidney", "gynecology", "heart", "vessel"];
const LANGUAGES = { en: "English", zh: "中文" };
const readers = [];
let documents = [], current = TASKS[0];

export const onReading = (listener) => readers.push(listener);
export const task = () => current;
export const isAsking = (name) => ASKING.includes(name);

// The fields that decide how files are read.
export const reading = () => ({
  frames: Number(get("frames").value) > 1 ? get("frames").value : "",
  image_tokens: get("image-tokens").value,
  keep_whole_frame: get("whole").checked ? "true" : "",
});

// The fields of the request for a text.
export const request = () => ({
  ...reading(),
  task: task(),
  prompt: isAsking(task()) ? get("prompt").value : "",
  region: get("region").value,
  language: get("report-language").value,
  documents: get("documents").checked && !isAsking(task()) ? possible().join(",") : "",
});

// A DICOM SR is about a DICOM file; whether a file is one shows in its name, or in its first bytes, which the server has read.
const possible = () => documents.filter((kind) => kind !== "sr" || chosen().some(isDicom));
const isDicom = (file) => !/\.(png|jpe?g|bmp|tiff?|webp|gif|mp4|mov|avi|mkv|webm|mpe?g)$/i.test(file.name);

export function ready() {
  const words = !isAsking(task()) || get("prompt").value.trim() !== "";
  return words && (chosen().length > 0 || task() === "question");
}

function update() {
  const asking = isAsking(task());
  get("prompt-field").hidden = !asking;
  if (asking) get("prompt-label").textContent = t(`prompt.${task()}`);
  get("documents-field").hidden = asking || !documents.length;
  get("write").textContent = t(asking ? "write.answer" : "write.report");
  get("write").disabled = !ready();
}

function names() {
  const region = get("region").value;
  get("tasks").replaceChildren(...TASKS.map((name) => made("label", { className: "chip" },
    made("input", { type: "radio", name: "task", value: name, checked: name === current }), made("span", {}, t(`task.${name}`)))));
  get("region").replaceChildren(...REGIONS.map((name) => new Option(t(`region.${name || "any"}`), name, false, name === region)));
  update();
}

export function startOptions(model, session) {
  documents = session.documents;
  for (const [code, name] of Object.entries(LANGUAGES)) get("report-language").append(new Option(name, code, false, code === now()));
  const { min_image_tokens: least, max_image_tokens: most } = model.limits;
  Object.assign(get("image-tokens"), { min: least, max: most, placeholder: most });
  onLanguage(names);
  onFiles(update);
  get("options").addEventListener("input", (event) => {
    if (event.target.name === "task") current = event.target.value;
    update();
  });
  for (const id of ["frames", "image-tokens", "whole"]) {
    get(id).addEventListener("input", () => { if (get(id).checkValidity()) for (const reader of readers) reader(); });
  }
}
