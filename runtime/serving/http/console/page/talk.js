// Questions about the same pictures: each is asked with all that was said before, as the server keeps nothing.
import { get, made } from "/console/dom.js";
import { onLanguage, t } from "/console/language.js";
import { about } from "/console/problems.js";
import { events, form } from "/console/server.js";

let subject = null, turns = [], running = null;

// Begins a conversation about { files, fields, result }, or ends it with null.
export function talkAbout(what) {
  running?.abort();
  subject = what;
  turns = what ? [{ prompt: what.result.prompt, reply: what.result.text }] : [];
  get("turns").replaceChildren();
  get("talk").hidden = !what;
}

async function ask(question) {
  const own = running = new AbortController();
  const answer = made("p", { className: "reply", "aria-live": "polite" }), notes = made("ul", { className: "remarks" });
  get("turns").append(made("li", {}, made("p", { className: "asked" }, question), answer, notes));
  button();
  const { frames, image_tokens, keep_whole_frame, language } = subject.fields;
  const fields = { frames, image_tokens, keep_whole_frame, language, task: "question", prompt: question, turns: JSON.stringify(turns), stream: "true" };
  try {
    for await (const event of events("/v1/reports", { method: "POST", body: form(subject.files, fields), signal: own.signal })) {
      if (event.text) answer.textContent += event.text;
      if (!event.result) continue;
      answer.textContent = event.result.text;
      notes.replaceChildren(...event.result.notes.map((one) => made("li", {}, one)));
      turns.push({ prompt: event.result.prompt, reply: event.result.text });
    }
  } catch (error) {
    notes.replaceChildren(made("li", {}, error.name === "AbortError" ? t("stopped") : about(error, subject?.files ?? [])));
  }
  if (running === own) running = null;
  button();
}

const button = () => { get("ask-button").textContent = t(running ? "stop" : "talk.ask"); };

export function startTalk() {
  onLanguage(button);
  get("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = get("question").value.trim();
    if (running) running.abort();
    else if (question) {
      get("question").value = "";
      ask(question);
    }
  });
}
