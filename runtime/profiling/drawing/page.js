// Columns of the operators: title, whether it holds words, how a number is written.
const COLUMNS = [
  ["Stage", true], ["Layer", true], ["Operator", true], ["Node", true],
  ["Calls", false, (value) => value.toLocaleString("en")],
  ["ms a call", false, (value) => value.toFixed(3)],
  ["Share", false, (value) => `${value.toFixed(2)}%`],
];
const order = { column: 6, ascending: false };

function swatch(stage) {
  const element = made("span", "", "swatch");
  element.style.background = `var(--stage-${stage})`;
  return element;
}

function showRun(run) {
  get("tokens").textContent = `${run.total}: ${run.tokens}.`;
  get("bar").replaceChildren(...run.segments.map((segment) => {
    const element = made("div", "", "segment");
    element.dataset.stage = segment.stage;
    element.style.flexGrow = segment.share;
    element.style.background = `var(--stage-${segment.stage})`;
    element.append(made("span", segment.words, segment.words.length > 8 ? "long" : ""));
    return element;
  }));
  get("axis").replaceChildren(...run.quarters.map((time) => made("span", time)));
  get("legend").replaceChildren(...run.segments.map((segment) => {
    const item = made("li");
    item.append(swatch(segment.stage), made("b", segment.words), made("span", segment.figure));
    if (segment.tokens) item.append(made("span", segment.tokens));
    return item;
  }));
}

function showRooflineKey(points) {
  const roof = made("span");
  roof.innerHTML = '<svg aria-hidden="true" viewBox="0 0 20 12"><path d="M0 6h20" stroke="var(--muted)" stroke-width="2" stroke-dasharray="4 3"/></svg>';
  roof.append("what this machine does at most");
  get("roofline-key").replaceChildren(roof, ...points.map(([stage, name, reached]) => {
    const item = made("span");
    item.append(swatch(stage), `${name}: ${reached}`);
    return item;
  }));
}

function showComparison(compared) {
  if (!compared) return;
  get("baseline").textContent = data.first;
  get("margin").textContent = `within ${compared.margin}`;
  get("how").textContent = compared.how;
  const verdict = 1;
  rows(get("compared"), compared.rows, (column) => column <= verdict, (value, column) => column === verdict ? value.replaceAll(" ", "-") : "");
}

function showOperators() {
  const wanted = get("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = data.profiles[get("run").value].operators;
  const found = all.filter((row) => wanted.every((word) => row.slice(0, 4).join(" ").toLowerCase().includes(word)));
  const { column, ascending } = order;
  const compared = (one, other) => COLUMNS[column][1]
    ? one[column].localeCompare(other[column], "en", { numeric: true }) : one[column] - other[column];
  found.sort((one, other) => ascending ? compared(one, other) : compared(other, one));
  get("operators-section").hidden = all.length === 0;
  rows(get("operators"), found.map((row) => row.map((value, place) => COLUMNS[place][1] ? value : COLUMNS[place][2](value))),
    (place) => COLUMNS[place][1]);
  get("matches").textContent = `${found.length} of ${all.length} operators`;
  [...get("operators").tHead.rows[0].cells].forEach((head, place) => {
    if (place === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
}

// Words begin with A, numbers with the largest; a second press turns it round.
function sortBy(column) {
  order.ascending = order.column === column ? !order.ascending : COLUMNS[column][1];
  order.column = column;
  showOperators();
}

get("operators").tHead.rows[0].replaceChildren(...COLUMNS.map(([title, isWords], column) => {
  const head = made("th", "", isWords ? "left" : "");
  const button = made("button", title);
  head.scope = "col";
  button.type = "button";
  button.addEventListener("click", () => sortBy(column));
  head.append(button);
  return head;
}));

async function show() {
  const profile = data.profiles[get("run").value];
  fill(get("workload"), Object.keys(profile.workloads));
  const name = get("workload").value, workload = profile.workloads[name], compared = profile.comparison[name];
  get("summary").textContent = compared ? compared.summary : workload.summary;
  get("facts").replaceChildren(...Object.entries(profile.facts).flatMap(([term, text]) => [made("dt", term), made("dd", text)]));
  showTiles(workload.tiles);
  showRun(workload.run);
  showRooflineKey(workload.roofline);
  rows(get("stages"), workload.stages, (column) => column === 0);
  showOperators();
  showComparison(compared);
  await draw("comparison", compared && compared.chart);
  for (const chart of ["waterfall", "stages", "roofline", "histogram", "tokens"]) await draw(chart, workload.charts[chart]);
  document.body.dataset.drawn = `${get("run").value} ${name}`;
}

get("search").addEventListener("input", showOperators);
get("run").addEventListener("change", show);
get("workload").addEventListener("change", show);
fill(get("run"), Object.keys(data.profiles));
get("run").value = Object.keys(data.profiles).at(-1);
show();
