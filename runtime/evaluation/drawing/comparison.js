async function show() {
  const name = get("group").value, group = data.groups[name];
  const verdict = 1;
  get("group-name").textContent = name;
  get("metric-name").textContent = get("metric").value;
  rows(get("compared"), group.rows, (column) => column <= verdict, (value, column) => column === verdict ? value.replaceAll(" ", "-") : "");
  const changed = data.metrics[get("metric").value] ?? [];
  get("changed-section").hidden = changed.length === 0;
  showCases(get("changed"), changed);
  await draw("changes", group.chart);
  document.body.dataset.drawn = name;
}

get("summary").textContent = data.summary;
fill(get("group"), Object.keys(data.groups));
fill(get("metric"), Object.keys(data.metrics));
showNotes(get("notes"), data.notes);
get("group").addEventListener("change", show);
get("metric").addEventListener("change", show);
show();
