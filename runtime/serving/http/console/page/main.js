// Starts the console: asks who is there, signs in where that is needed, then joins the parts.
import { get } from "/console/dom.js";
import { startFiles } from "/console/files.js";
import { toggleLanguage, onLanguage, t, translate } from "/console/language.js";
import { startOptions } from "/console/options.js";
import { startPictures } from "/console/pictures.js";
import { said, tell } from "/console/problems.js";
import { startReport } from "/console/report.js";
import { asked } from "/console/server.js";
import { startService } from "/console/service.js";
import { signedIn } from "/console/sign_in.js";
import { show, startTabs } from "/console/tabs.js";
import { startTheme } from "/console/theme.js";

startTheme();
startTabs();
onLanguage(() => { get("language").textContent = t("language.other"); });
get("language").addEventListener("click", toggleLanguage);
translate();

const [session, model] = await begun();
get("model").textContent = [model.model, model.precision, model.target].join(" · ");
startOptions(model, session);
startPictures(model);
startReport();
startService();
startFiles(session.study);
translate();
document.querySelector("[role=tablist]").hidden = false;
show("report");
document.body.dataset.ready = "true";

async function begun() {
  try {
    const session = await signedIn();
    return [session, (await asked("/v1/models")).data[0].echovlm];
  } catch (error) {
    tell("lost", () => said(error));
    return new Promise(() => {}); // there is nothing to show: a reload tries again
  }
}
