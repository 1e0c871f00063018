// The service's state, asked again every two seconds while this tab is in sight.
import { get, made, pairs } from "/console/dom.js";
import { number, onLanguage, t } from "/console/language.js";
import { kind, said } from "/console/problems.js";
import { asked } from "/console/server.js";
import { onTab } from "/console/tabs.js";
import { has } from "/console/words.js";

const EVERY = 2000; // milliseconds
let state = null, before = null, inSight = false, timer = 0;

async function poll() {
  clearTimeout(timer);
  if (!inSight || document.visibilityState !== "visible") return;
  try {
    [before, state] = [state, { ...(await asked("/v1/service")), at: performance.now() }];
    draw();
  } catch (error) {
    get("panel-service").replaceChildren(made("p", { className: "problem", role: "alert" }, said(error)));
  }
  timer = setTimeout(poll, EVERY);
}

function draw() {
  if (!state) return;
  get("panel-service").replaceChildren(
    ...(state.serving ? [] : [made("p", { className: "problem" }, t("service.off"))]),
    ...(state.refused_bundle ? [made("p", { className: "problem" }, t("service.refused", state.refused_bundle))] : []),
    part("service.now", slots(), facts([
      ["service.waiting", number(state.slots.waiting)], ["service.parked", number(state.slots.parked)],
      ["service.places", t("service.of", { one: number(state.places.taken), all: number(state.places.total) })],
      ["service.speed", number(speed(), 1)]]), made("h3", {}, t("service.clients")), clients()),
    titled(t("service.since", { time: span(state.uptime_seconds) }), since()),
    part("service.memory", memory()),
    part("service.model", facts([
      ["service.model.name", state.model.name], ["service.model.bundle", state.model.bundle_id],
      ["service.model.made", `${state.model.precision}, ${state.model.target}`],
      ["service.model.context", number(state.model.max_sequence)], ["service.model.version", state.model.version]])),
    part("service.errors", errors()));
  get("panel-service").dataset.drawn = "true";
}

const part = (key, ...children) => titled(t(key), ...children);
const titled = (title, ...children) => made("section", {}, made("h2", {}, title), ...children);
const facts = (list) => made("dl", { className: "facts" }, ...pairs(list.map(([key, value]) => [t(key), value])));

function slots() {
  const { busy, total } = state.slots;
  const squares = Array.from({ length: total }, (_, place) => made("i", { className: place < busy ? "busy" : "" }));
  return made("p", { className: "slots" }, made("span", { "aria-hidden": "true" }, ...squares), t("service.busy", { busy, total }));
}

function speed() {
  return before ? Math.max(0, 1000 * (state.tokens.written - before.tokens.written) / (state.at - before.at)) : 0;
}

function since() {
  const { tokens } = state;
  return facts([
    ["service.written", number(tokens.written)], ["service.read", number(tokens.prefilled)], ["service.reused", number(tokens.reused)],
    ["service.step", tokens.written > tokens.saved_steps ? number(tokens.written / (tokens.written - tokens.saved_steps), 2) : "–"]]);
}

function table(columns, rows) {
  return made("div", { className: "rows", tabIndex: 0 }, made("table", {},
    made("thead", {}, made("tr", {}, ...columns.map((key) => made("th", { scope: "col" }, t(key))))),
    made("tbody", {}, ...rows.map((row) => made("tr", {}, ...row.map((cell) => made("td", {}, cell)))))));
}

function memory() {
  const { caches, studies, uploads } = state;
  const used = ({ hits, misses }) => t("service.hits", { hits: number(hits), all: number(hits + misses) });
  return table(["service.what", "service.count", "service.bytes", "service.use"], [
    [t("service.prompts"), number(caches.prompts.entries), megabytes(caches.prompts.bytes), used(caches.prompts)],
    [t("service.images"), number(caches.images.entries), megabytes(caches.images.bytes), used(caches.images)],
    [t("service.studies"), number(studies.open), megabytes(studies.bytes), ""],
    [t("service.uploads"), number(uploads.files), megabytes(uploads.bytes), ""]]);
}

function clients() {
  const others = state.other_calls ? made("p", { className: "quiet" }, t("service.others", { calls: number(state.other_calls) })) : "";
  if (!state.clients.length) return made("p", { className: "quiet" }, others ? "" : t("service.nobody"), others);
  return made("div", {}, table(["service.client", "service.calls"], state.clients.map((one) => [one.name, number(one.calls)])), others);
}

function errors() {
  if (!state.errors.length) return made("p", { className: "quiet" }, t("service.none"));
  const time = (seconds) => new Date(1000 * seconds).toLocaleString(document.documentElement.lang);
  return table(["service.time", "service.outcome", "service.method", "service.client", "service.door", "service.call"],
    state.errors.map((one) => [time(one.time), made("span", { title: one.outcome }, kind(one.outcome)), word("method", one.method), one.client,
      word("door", one.door), one.request_id]));
}

const word = (group, name) => made("span", { title: name }, has(`${group}.${name}`) ? t(`${group}.${name}`) : name);
const megabytes = (bytes) => `${number(bytes / 1e6, 1)} MB`;

function span(seconds) {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

export function startService() {
  onLanguage(draw);
  onTab((name) => { inSight = name === "service"; poll(); });
  document.addEventListener("visibilitychange", poll);
}
