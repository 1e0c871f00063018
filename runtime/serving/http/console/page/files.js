// The files of the examination: dropped or chosen, removed, and told to whoever listens. They stay in this page until they are sent.
import { get, made } from "/console/dom.js";
import { onLanguage, t } from "/console/language.js";
import { file } from "/console/server.js";

let files = [];
const listeners = [];

export const chosen = () => files;
export const onFiles = (listener) => listeners.push(listener);

function use(next) {
  files = next;
  list();
  get("drop").hidden = files.length > 0;
  get("looking").hidden = files.length === 0;
  if (!files.length) get("choose").focus();
  for (const listener of listeners) listener(files);
}

function list() {
  get("file-list").replaceChildren(...files.map((one, place) => {
    const remove = made("button", { type: "button", className: "plain", ariaLabel: t("file.remove", { name: one.name }) }, "×");
    remove.addEventListener("click", () => {
      use(files.filter((other) => other !== one));
      get("file-list").querySelectorAll("button")[Math.min(place, files.length - 1)]?.focus();
    });
    return made("li", {}, made("span", { title: one.name }, one.name), remove);
  }));
}

async function tryStudy(names) {
  const data = await Promise.all(names.map((_, place) => file(`/console/study/${place + 1}`)));
  use(data.map((one, place) => new File([one], names[place])));
}

export function startFiles(study) {
  const input = get("files"), pane = document.querySelector(".pictures");
  for (const id of ["choose", "more"]) get(id).addEventListener("click", () => input.click());
  get("clear").addEventListener("click", () => use([]));
  input.addEventListener("change", () => { use([...files, ...input.files]); input.value = ""; });
  get("try").hidden = study.length === 0;
  get("try").addEventListener("click", () => tryStudy(study));
  onLanguage(list);
  // A file dropped beside the pane must not replace the page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  for (const kind of ["dragenter", "dragover"]) pane.addEventListener(kind, () => pane.classList.add("over"));
  pane.addEventListener("dragleave", (event) => { if (!pane.contains(event.relatedTarget)) pane.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    pane.classList.remove("over");
    if (event.dataTransfer.files.length) use([...files, ...event.dataTransfer.files]);
  });
}
