// Where a report's time went: a row for each stage, with its pieces of work along the time, and the tokens in a sentence.
import { drawn, get, made } from "/console/dom.js";
import { number, t } from "/console/language.js";

const WIDTH = 1000, HEIGHT = 14; // of a row's drawing, which is stretched
const THINNEST = 2; // so that a short piece is seen

export function showFigures(result) {
  get("figures").hidden = !result?.timings.spans;
  if (get("figures").hidden) return;
  const { timings, usage } = result;
  get("figures-sum").textContent = sum(timings, usage);
  const stages = timings.spans.toSorted((one, other) => one.pieces[0][0] - other.pieces[0][0]);
  get("waterfall").replaceChildren(
    ...stages.map(({ stage, pieces }) => row(stage, pieces, timings.stages[stage], timings.total_seconds)), scale(timings.total_seconds));
}

function sum({ first_token_seconds: first, total_seconds: total, stages }, usage) {
  return t("figures.sum", {
    total: number(total, 2), first: first === null ? "–" : number(first, 2), written: number(usage.generated_tokens),
    speed: stages.decode ? number(usage.generated_tokens / stages.decode, 1) : "–",
    step: usage.decode_steps ? number(usage.generated_tokens / usage.decode_steps, 1) : "–",
    prompt: number(usage.prompt_tokens), cached: number(usage.reused_tokens),
  });
}

function row(stage, pieces, seconds, total) {
  const bars = pieces.map(([start, end]) => drawn("rect", {
    x: WIDTH * Math.min(start / total, 1 - THINNEST / WIDTH), width: Math.max(THINNEST, WIDTH * (end - start) / total), height: HEIGHT,
  }));
  return made("div", { className: "row", "data-stage": stage },
    made("span", {}, t(`stage.${stage}`)),
    drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars),
    made("span", { className: "figure" }, `${number(1000 * seconds, seconds < 0.1 ? 1 : 0)} ms`));
}

const scale = (total) => made("div", { className: "row scale", "aria-hidden": "true" }, made("span"),
  made("span", { className: "ends" }, made("span", {}, "0"), made("span", {}, `${number(total, 2)} s`)), made("span"));
