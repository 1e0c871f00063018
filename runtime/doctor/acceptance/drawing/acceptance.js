function sentences(name, texts) {
  get(`${name}-section`).hidden = texts.length === 0;
  get(name).replaceChildren(...texts.map((text) => made("li", text)));
}

async function show() {
  get("verdict").textContent = data.verdict;
  get("verdict").className = data.passed ? "passed" : "failed";
  get("about").textContent = data.about;
  get("summary").textContent = data.summary;
  sentences("failures", data.failures);
  sentences("left-out", data.skipped);
  showTiles(data.tiles);
  const states = ["passed", "failed", "skipped"];
  const coloured = (place) => (value, column) => (column === place && states.includes(value) ? value : "");
  rows(get("steps"), data.steps, (column) => column < 3, coloured(1));
  rows(get("figures"), data.figures, (column) => column !== 1, coloured(3));
  get("how").textContent = data.how;
  rows(get("checks"), data.checks, () => true, coloured(2));
  get("facts").replaceChildren(...Object.entries(data.facts).flatMap(([term, text]) => [made("dt", term), made("dd", text)]));
  for (const name of ["tokens", "temperature", "power", "clock"]) await draw(name, data.charts[name]);
  document.body.dataset.drawn = "all";
}

show();
