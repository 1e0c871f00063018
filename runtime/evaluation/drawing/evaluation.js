async function show() {
  const name = get("group").value, group = data.groups[name];
  const title = get("metric").value, metric = data.metrics[title];
  get("summary").textContent = group.summary;
  showTiles(group.tiles);
  rows(get("figures"), group.rows, (column) => column === 0);
  get("group-name").textContent = name;
  document.querySelectorAll(".metric-name").forEach((place) => { place.textContent = title; });
  get("metric-note").textContent = `${metric.note}.`;
  const worst = metric.worst[name];
  get("worst-section").hidden = worst.length === 0;
  showCases(get("worst"), worst.map(({ row, score }) => ({ ...data.cases[row], score })));
  await draw("groups", metric.byGroup);
  await draw("histogram", metric.histogram[name]);
  document.body.dataset.drawn = `${name} ${title}`;
}

fill(get("group"), Object.keys(data.groups));
fill(get("metric"), Object.keys(data.metrics));
rows(get("paper"), data.paper, (column) => column === 0);
rows(get("skipped"), data.skipped, () => true);
get("skipped-section").hidden = data.skipped.length === 0;
rows(get("computed"), data.computed, () => true);
get("facts").replaceChildren(...Object.entries(data.facts).flatMap(([term, text]) => [made("dt", term), made("dd", text)]));
showNotes(get("notes"), data.notes);
get("group").addEventListener("change", show);
get("metric").addEventListener("change", show);
show();
