// A row of the frames. Only those in sight hold a picture, so that hundreds of frames scroll as lightly as three.
import { get, made } from "/console/dom.js";
import { onLanguage, t } from "/console/language.js";

const AHEAD = "0px 240px"; // how far beside the row's edges pictures are kept
let frames = [], names = [], current = 0, choose = () => {};

const observer = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    const shown = target.firstElementChild;
    if (isIntersecting && shown?.tagName !== "IMG") {
      target.prepend(made("img", { src: frames[target.dataset.place].seen.url, alt: "", decoding: "async", draggable: false }));
    } else if (!isIntersecting && shown?.tagName === "IMG") shown.remove();
  }
}, { root: get("strip"), rootMargin: AHEAD });

export function fillStrip(pictures, fileNames) {
  observer.disconnect();
  [frames, names, current] = [pictures, fileNames, Math.min(current, Math.max(0, pictures.length - 1))];
  get("strip").replaceChildren(...frames.map((frame, place) => {
    const marks = frame.notes.length || frame.unlike_ultrasound ? made("span", { className: "mark" }, "!") : null;
    const button = made("button", { type: "button", "data-place": place }, marks ?? "");
    button.addEventListener("click", () => select(place));
    observer.observe(button);
    return made("li", { className: place && frame.image === frames[place - 1].image ? "" : "first" }, button);
  }));
  label();
  select(current, false);
}

export function clearStrip() {
  current = 0;
  fillStrip([], []);
}

function label() {
  for (const button of get("strip").querySelectorAll("button")) {
    const frame = frames[button.dataset.place];
    button.ariaLabel = t("frame.name", { file: names[frame.image - 1], frame: frame.frame + 1, count: frame.frame_count });
  }
}

function select(place, withFocus = true) {
  current = place;
  const buttons = get("strip").querySelectorAll("button");
  for (const button of buttons) {
    const isCurrent = Number(button.dataset.place) === place;
    button.ariaCurrent = String(isCurrent);
    button.tabIndex = isCurrent ? 0 : -1;
  }
  if (withFocus) {
    buttons[place]?.focus();
    buttons[place]?.scrollIntoView({ inline: "nearest", block: "nearest" });
  }
  choose(frames[place] ?? null, names[(frames[place]?.image ?? 0) - 1]);
}

export function startStrip(chosen) {
  choose = chosen;
  onLanguage(label);
  get("strip").addEventListener("keydown", (event) => {
    const last = frames.length - 1;
    const next = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: last, PageDown: current + 8, PageUp: current - 8 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select(Math.max(0, Math.min(last, next)));
  });
}
