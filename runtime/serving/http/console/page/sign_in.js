// Asks for a token where the server does not know its caller otherwise. It is never stored: a reload asks again.
import { get } from "/console/dom.js";
import { t } from "/console/language.js";
import { asked, hasToken, useToken } from "/console/server.js";

const session = () => asked("/console/session");

// Waits until the server knows who calls; returns what it offers.
export async function signedIn() {
  get("sign-out").addEventListener("click", () => location.reload());
  let found = await session();
  while (!found.known) {
    get("sign-in").hidden = false;
    get("token").focus();
    useToken(await typed());
    found = await session();
    get("sign-problem").textContent = found.known ? "" : t("sign.unknown");
  }
  get("sign-in").hidden = true;
  get("sign-out").hidden = !hasToken();
  return found;
}

function typed() {
  return new Promise((resolve) => {
    get("sign-in").querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const value = get("token").value.trim();
      get("token").value = "";
      resolve(value);
    }, { once: true });
  });
}
