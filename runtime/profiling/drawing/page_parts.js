"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);

function made(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function fill(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(before)) select.value = before;
}

function rows(table, values, isLeft, nameClass = () => "") {
  table.tBodies[0].replaceChildren(...values.map((row) => {
    const line = document.createElement("tr");
    row.forEach((value, column) => {
      const cell = line.insertCell();
      cell.textContent = value;
      if (isLeft(column)) cell.classList.add("left");
      const name = nameClass(value, column);
      if (name) cell.classList.add(name);
    });
    return line;
  }));
}

async function draw(name, spec) {
  const place = document.querySelector(`[data-chart="${name}"]`);
  place.closest("section").hidden = !spec;
  place.replaceChildren();
  if (spec) await vegaEmbed(place, spec, { renderer: "svg", actions: false, tooltip: { theme: "custom" } });
}

function showTiles(tiles) {
  get("tiles").replaceChildren(...tiles.map(([title, figure, note]) => {
    const tile = made("li", "", figure === null ? "unknown" : "");
    tile.append(made("span", title), made("strong", figure === null ? "unknown" : figure), made("span", note));
    return tile;
  }));
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  get("theme").textContent = dark ? "Light" : "Dark";
}

theme(matchMedia("(prefers-color-scheme: dark)").matches);
get("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
