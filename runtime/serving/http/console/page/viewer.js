// One frame, large: the whole of it with the part that was kept, or as the model sees it, and what was decided about it.
import { drawn, get, made, pairs } from "/console/dom.js";
import { number, onLanguage, t } from "/console/language.js";

let frame = null, name = "", view = "whole";

const isCropped = () => frame.whole !== null;

function draw() {
  const figure = get("viewer");
  figure.hidden = frame === null;
  if (!frame) return;
  figure.querySelector(".stage").replaceChildren(...stage());
  figure.querySelector(".views").replaceChildren(...(isCropped() ? views() : []));
  figure.querySelector(".facts").replaceChildren(...pairs(facts()));
  const remarks = [...(frame.unlike_ultrasound ? [t("unlike")] : []), ...frame.notes];
  figure.querySelector(".remarks").replaceChildren(...remarks.map((one) => made("li", {}, one)));
}

function stage() {
  const whole = isCropped() && view === "whole";
  const [width, height] = whole || !isCropped() ? [frame.width, frame.height] : [frame.model_width, frame.model_height];
  const image = made("img", { src: (whole ? frame.whole : frame.seen).url, alt: caption(), draggable: false });
  const sheet = made("div", { className: "sheet" }, image);
  sheet.style.setProperty("--ratio", width / height);
  if (whole) sheet.append(cropped(width, height));
  return [sheet];
}

// What was left out is dimmed, and what was kept has a frame.
function cropped(width, height) {
  const { left, top, right, bottom } = frame.box;
  const outside = `M0 0H${width}V${height}H0ZM${left} ${top}V${bottom}H${right}V${top}Z`;
  return drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "crop", "aria-hidden": "true" },
    drawn("path", { d: outside, class: "outside" }),
    drawn("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "kept" }));
}

function views() {
  return ["whole", "seen"].map((one) => {
    const input = made("input", { type: "radio", name: "view", value: one, checked: one === view });
    input.addEventListener("change", () => {
      view = one;
      draw();
      get("viewer").querySelector(`input[value=${one}]`).focus();
    });
    return made("label", { className: "chip" }, input, made("span", {}, t(`view.${one}`)));
  });
}

const caption = () => t("frame.name", { file: name, frame: frame.frame + 1, count: frame.frame_count });
const size = (width, height) => `${number(width)} × ${number(height)}`;

function facts() {
  const { box, window: grey } = frame;
  const kept = !isCropped() ? t("fact.kept.all") :
    t("fact.kept.part", { width: box.right - box.left, height: box.bottom - box.top, left: box.left, top: box.top });
  return [
    [t("fact.file"), name],
    ...(frame.frame_count > 1 ? [[t("fact.frame"), t("fact.frame.of", { frame: frame.frame + 1, count: frame.frame_count })]] : []),
    [t("fact.size"), size(frame.width, frame.height)],
    [t("fact.kept"), kept],
    ...(grey ? [[t("fact.window"), t("fact.window.range", { low: grey.center - grey.width / 2, high: grey.center + grey.width / 2 })]] : []),
    [t("fact.model"), t("fact.model.tokens", { size: size(frame.model_width, frame.model_height), tokens: number(frame.tokens) })],
  ];
}

export function look(picture, fileName) {
  [frame, name] = [picture, fileName];
  draw();
}

export const startViewer = () => onLanguage(draw);
