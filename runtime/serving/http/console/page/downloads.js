// The report as text, DICOM SR and FHIR. The documents came with the result; they name the patient and stay in this page.
import { get, made } from "/console/dom.js";
import { t } from "/console/language.js";

const NAMES = { sr: ["DICOM SR", "report.dcm"], fhir: ["FHIR", "report.json"] };

export function offerDownloads(result) {
  get("downloads").replaceChildren(...(result ? [
    button(t("download.text"), () => save("report.txt", new Blob([asText(result)], { type: "text/plain;charset=utf-8" }))),
    // Browsers have a clipboard only for pages by TLS or from this computer.
    ...(navigator.clipboard ? [button(t("download.copy"), async ({ currentTarget: pressed }) => {
      await navigator.clipboard.writeText(asText(result));
      pressed.textContent = t("download.copied");
    })] : []),
    ...Object.entries(result.documents ?? {}).map(([kind, made]) => button(NAMES[kind][0], () => save(NAMES[kind][1], blob(made)))),
  ] : []));
}

function button(name, act) {
  const element = made("button", { type: "button" }, name);
  element.addEventListener("click", act);
  return element;
}

// The text goes nowhere without its notice and its notes.
const asText = (result) =>
  [result.text, ...result.notes, result.notice, t("origin", { model: result.model, bundle: result.bundle_id, call: result.request_id }), ""].join("\n\n");

const blob = (document) =>
  new Blob([Uint8Array.from(atob(document.data), (letter) => letter.charCodeAt(0))], { type: document.media_type });

function save(name, data) {
  const url = URL.createObjectURL(data);
  made("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
