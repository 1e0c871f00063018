// Rows with their question, pictures and texts side by side; `score` says what they are shown for.
function showCases(list, cases) {
  list.replaceChildren(...cases.map((one) => {
    const item = made("li"), pictures = made("div", "", "pictures"), texts = made("div", "", "texts");
    item.append(made("h3", `${one.name}: ${one.score}`), made("p", one.about, "note"), made("p", one.question, "question"));
    one.pictures.forEach((source, place) => {
      const picture = made("img");
      picture.src = source;
      picture.alt = `Picture ${place + 1} of ${one.name}`;
      pictures.append(picture);
    });
    if (one.pictures.length) item.append(pictures);
    if (one.more) item.append(made("p", `${one.more} more ${one.more === 1 ? "picture" : "pictures"}`, "note"));
    one.texts.forEach(([title, text]) => {
      const part = made("div");
      part.append(made("h4", title), made("p", text));
      texts.append(part);
    });
    item.append(texts);
    return item;
  }));
}

function showNotes(list, notes) {
  list.replaceChildren(...notes.map((note) => made("li", note)));
}
