// A pane: a picture with its patches as a grid of cells, which keys walk. Colours and texts of a patch, for cell and figure.

const measure = document.createElement("canvas").getContext("2d"),
  widths = new Map();
function widthOf(word) {
  // in widths of its font's size
  if (!widths.has(word)) {
    measure.font = "20px system-ui, sans-serif";
    widths.set(word, measure.measureText(word).width / 20);
  }
  return widths.get(word);
}
const LEAST = 9,
  MOST = 15; // px of letters
function letters(word, width, height) {
  // the size at which a word fits into a cell; 0: at none that can be read
  const size = Math.min(MOST, height - 4, (width - 5) / (widthOf(word) || 1));
  return size >= LEAST ? Math.floor(size) : 0;
}

function colourOf(view, pane, token) {
  // [rgb, alpha], or null
  const at = (pane.now * pane.tokens + token) * pane.k;
  if (view.colour === "cosine")
    return pane.word[at] ? [ramp((pane.cosine[at] - view.low) / (view.high - view.low || 1)), 0.62] : null;
  if (view.colour === "word") {
    const word = wordOn(view, pane, token);
    return word ? [hue(word), 0.55] : null;
  }
  if (view.colour === "truth") {
    const right = pane.right ? pane.right[pane.now * pane.tokens + token] : 0;
    return right ? [right === RIGHT ? TRUE.right : TRUE.wrong, pane.object[token] === 2 ? 0.75 : 0.38] : null;
  }
  if (view.colour === "attention" && pane.attention) return [ramp(pane.attention[token] / (pane.most || 1)), 0.7];
  return null;
}

function wordOn(view, pane, token) {
  // the word that stands on a patch
  if ((pane.seen && !pane.seen[token]) || view.shown === "nothing") return "";
  if (view.shown === "labels")
    return pane.labels ? (wordsAt(pane.labels, 0, token, pane.tokens, view.table)[0] || [""])[0] : "";
  if (view.shown === "truth")
    return pane.truth ? (pane.truth[token] || []).map(word => view.table[word]).join(", ") : "";
  return view.table[pane.word[(pane.now * pane.tokens + token) * pane.k] || 0];
}

function spoken(view, pane, token) {
  // all of a patch in words, for who does not see it
  const words = wordsAt(pane, pane.now, token, pane.tokens, view.table).map(
    ([word, cosine]) => `${word} ${measured(cosine)}`,
  );
  const right = pane.right ? ["", "wrong", "right"][pane.right[pane.now * pane.tokens + token]] : "";
  return [place(pane, token), pane.seen && !pane.seen[token] ? "padding" : "", words.join(", "), right]
    .filter(Boolean)
    .join(": ");
}

function drawn(view, pane) {
  // the pane's elements, empty: `paint` fills them
  const grid = element("div", {
    class: "mmx-grid",
    role: "grid",
    "aria-label": `${pane.name || view.name}: patches; arrow keys walk, page keys change the layer`,
  });
  grid.style.gridTemplate = `repeat(${pane.rows}, 1fr) / repeat(${pane.columns}, 1fr)`;
  pane.cells = [];
  for (let row = 0; row < pane.rows; row++) {
    const line = element("div", { class: "mmx-row", role: "row" });
    for (let column = 0; column < pane.columns && pane.cells.length < pane.tokens; column++) {
      const cell = element(
        "div",
        { class: "mmx-cell", role: "gridcell", tabindex: "-1" },
        document.createElement("span"),
      );
      cell.token = pane.cells.length;
      pane.cells.push(cell);
      line.append(cell);
    }
    grid.append(line);
  }
  if (pane.cells.length) pane.cells[0].tabIndex = 0;
  pane.tip = element("div", { class: "mmx-tip", hidden: "", "aria-hidden": "true" });
  pane.stage = element("div", { class: "mmx-stage" }, grid, pane.tip);
  pane.caption = element("figcaption");
  const { png, width, height } = pane.picture,
    url = `data:image/png;base64,${png}`,
    scroll = element("div", { class: "mmx-scroll" }, pane.stage);
  const figure = element("figure", { class: "mmx-pane" }, pane.caption);
  if (pane.patches) {
    grid.before(element("span", { role: "img", "aria-label": `the picture ${view.name}, as the encoder is given it` }));
    pane.stage.style.backgroundImage = `url(${url})`;
    pane.shape = height / width;
    if (width <= 128) pane.stage.classList.add("mmx-pixels");
  } else {
    figure.append(
      element("img", { class: "mmx-thumb", src: url, alt: `the picture ${view.name}, as the encoder is given it` }),
      element("p", {
        class: "mmx-note",
        text: "These visual tokens are no patches: none lies at a place of the picture.",
      }),
    );
    pane.stage.classList.add("mmx-plain");
    pane.shape = pane.rows / pane.columns / 2;
  }
  figure.append(scroll);
  return figure;
}

function paint(view, pane) {
  // colours, words and marks of the layer that is shown
  const width = pane.stage.clientWidth / pane.columns,
    height = pane.stage.clientHeight / pane.rows;
  for (const cell of pane.cells) {
    const token = cell.token,
      word = wordOn(view, pane, token),
      size = word ? letters(word, width, height) : 0;
    const padding = pane.seen && !pane.seen[token],
      colour = padding ? null : colourOf(view, pane, token);
    cell.style.backgroundColor = colour ? css(...colour) : "";
    if (cell.word !== word || cell.size !== size) {
      const text = cell.firstChild;
      text.textContent = size ? word : "";
      text.hidden = !size;
      if (size) text.style.fontSize = `${size}px`;
      Object.assign(cell, { word, size });
    }
    const hit = view.found ? view.found(pane, pane.now, token) : null;
    const name = `mmx-cell${padding ? " mmx-pad" : ""}${hit === true ? " mmx-hit" : hit === false ? " mmx-dim" : ""}${pane.on === token ? " mmx-on" : ""}`;
    if (cell.className !== name) cell.className = name;
    cell.setAttribute(
      "aria-label",
      pane.on === token
        ? spoken(view, pane, token)
        : `${place(pane, token)}: ${padding ? "padding" : word || "no word"}`,
    );
  }
}

function point(view, pane, token) {
  // mark a patch and say beside it what is there; null: none
  if (pane.on !== null && pane.cells[pane.on]) pane.cells[pane.on].classList.remove("mmx-on");
  pane.on = token;
  pane.tip.hidden = token === null;
  if (token === null) return;
  const cell = pane.cells[token],
    lines = wordsAt(pane, pane.now, token, pane.tokens, view.table);
  cell.classList.add("mmx-on");
  cell.setAttribute("aria-label", spoken(view, pane, token));
  const rows = lines.map(([word, cosine]) =>
    element("div", {}, element("span", { text: word, dir: "auto" }), element("em", { text: measured(cosine) })),
  );
  if (pane.seen && !pane.seen[token]) rows.unshift(element("div", { text: "padding" }));
  pane.tip.replaceChildren(...(rows.length ? rows : [element("div", { text: "no word" })]));
  const { offsetLeft: left, offsetTop: top, offsetWidth: wide, offsetHeight: high } = cell,
    stage = pane.stage;
  const below = top + high + 4,
    room = stage.clientHeight - pane.tip.offsetHeight;
  pane.tip.style.left = `${Math.max(0, Math.min(left + wide / 2 - pane.tip.offsetWidth / 2, stage.clientWidth - pane.tip.offsetWidth))}px`;
  pane.tip.style.top = `${below <= room || top < pane.tip.offsetHeight ? below : top - pane.tip.offsetHeight - 4}px`;
}
