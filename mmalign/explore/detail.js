// One patch at all layers, and all patches of one layer as a table.

function detail(view) {
  // the panel beside the panes
  const rows = [];
  for (const pane of view.panes) {
    const token = pane.on;
    if (token === null) continue;
    rows.push(element("h3", { text: [pane.name, place(pane, token)].filter(Boolean).join(": ") }));
    const told = [];
    if (pane.seen && !pane.seen[token]) told.push("padding: no picture is here");
    if (pane.truth)
      told.push(
        `true here: ${pane.truth[token].map(word => view.table[word]).join(", ") || "nothing that is known"}${pane.object[token] ? ` (${KIND[pane.object[token]]})` : ""}`,
      );
    if (pane.right && pane.right[pane.now * pane.tokens + token])
      told.push(`nearest word: ${["", "wrong", "right"][pane.right[pane.now * pane.tokens + token]]}`);
    if (pane.attention) told.push(`text looks here: ${pane.attention[token].toPrecision(3)}`);
    if (pane.labels)
      told.push(
        `labels: ${
          wordsAt(pane.labels, 0, token, pane.tokens, view.table)
            .map(([word, score]) => `${word} ${measured(score)}`)
            .join(", ") || "none"
        }`,
      );
    rows.push(...told.map(text => element("p", { text, dir: "auto" })));
    if (pane.layers.length > 1)
      rows.push(
        element("p", { class: "mmx-note", text: "nearest word's cosine, by layer:" }),
        strip(view, pane, token),
      );
    if (pane.layers.length)
      rows.push(
        element(
          "div",
          { class: "mmx-deep", tabindex: "0", role: "region", "aria-label": "nearest words at every layer" },
          deep(view, pane, token),
        ),
      );
  }
  return rows.length
    ? rows
    : [
        element("p", {
          class: "mmx-note",
          text: "Point at a patch, tap it, or walk there with Tab and the arrow keys. Enter or a click keeps it; Escape lets go.",
        }),
      ];
}

const heat = (view, cosine) => ramp((cosine - view.low) / (view.high - view.low || 1));

function strip(view, pane, token) {
  const bar = element("div", { class: "mmx-strip", role: "group", "aria-label": "layers" });
  pane.layers.forEach((layer, number) => {
    const [word, cosine] = wordsAt(pane, number, token, pane.tokens, view.table)[0] || ["no word", UNKNOWN];
    const text = `layer ${layer}: ${word} ${measured(cosine)}`;
    const own = element("button", {
      type: "button",
      tabindex: "-1",
      title: text,
      "aria-label": text,
      class: number === pane.now ? "mmx-now" : "",
      onclick: () => view.turn(layer),
    });
    own.style.background = cosine === UNKNOWN ? "none" : css(heat(view, cosine));
    bar.append(own);
  });
  return bar;
}

function deep(view, pane, token) {
  // a line a layer, its words coloured by cosine
  const lines = pane.layers.map((layer, number) => {
    const line = element(
      "tr",
      { class: number === pane.now ? "mmx-now" : "" },
      element("th", { scope: "row", text: String(layer) }),
    );
    for (const [word, cosine] of wordsAt(pane, number, token, pane.tokens, view.table)) {
      const rgb = cosine === UNKNOWN ? [128, 128, 128] : heat(view, cosine),
        more = { title: `${word} ${measured(cosine)}`, dir: "auto" };
      if (line.childElementCount === 1) line.append(element("td", { class: "mmx-first", text: measured(cosine) }));
      const cell = element("td", { text: word, ...more });
      cell.style.background = css(rgb);
      cell.style.color = inkOn(rgb);
      line.append(cell);
    }
    return line;
  });
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      element("th", { scope: "col", text: "layer" }),
      element("th", { scope: "col", text: view.measure }),
      element("th", { scope: "col", text: "nearest first" }),
    ),
  );
  head.firstChild.lastChild.colSpan = Math.max(1, pane.k);
  return element("table", {}, head, element("tbody", {}, ...lines));
}

function asTable(view) {
  // every patch of the layer that is shown, pane by pane
  return view.panes.map(pane => {
    const names = ["patch", ...Array.from({ length: pane.k }, (_, rank) => (rank ? `${rank + 1}.` : "nearest"))];
    if (pane.labels) names.push("labels");
    if (pane.truth) names.push("true", "judged");
    const lines = Array.from({ length: pane.tokens }, (_, token) => {
      const words = wordsAt(pane, pane.now, token, pane.tokens, view.table).map(
        ([word, cosine]) => `${word} ${measured(cosine)}`,
      );
      while (words.length < pane.k) words.push("");
      if (pane.labels)
        words.push(
          wordsAt(pane.labels, 0, token, pane.tokens, view.table)
            .map(([word]) => word)
            .join(", "),
        );
      if (pane.truth)
        words.push(
          pane.truth[token].map(word => view.table[word]).join(", "),
          ["", "wrong", "right"][pane.right[pane.now * pane.tokens + token]],
        );
      const head = place(pane, token) + (pane.seen && !pane.seen[token] ? ", padding" : "");
      return element(
        "tr",
        {},
        element("th", { scope: "row", text: head }),
        ...words.map(text => element("td", { text, dir: "auto" })),
      );
    });
    const head = element("thead", {}, element("tr", {}, ...names.map(text => element("th", { scope: "col", text }))));
    return element(
      "table",
      {},
      element("caption", { text: [pane.name || view.name, layerName(pane)].filter(Boolean).join(", ") }),
      head,
      element("tbody", {}, ...lines),
    );
  });
}

const layerName = pane => (pane.layers.length ? `layer ${pane.layers[pane.now]}` : "");
