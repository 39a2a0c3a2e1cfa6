// The explorer itself: its controls, and what they show.

const SHOWN = { words: "nearest words", labels: "labels", truth: "what is true", nothing: "nothing" };
const COLOURS = {
  cosine: "",
  word: "word",
  truth: "right or wrong",
  attention: "where text looks",
  nothing: "nothing",
};

async function begin(root) {
  const data = JSON.parse(root.querySelector(".mmx-data").textContent);
  const view = {
    table: data.words,
    told: data.told,
    measure: data.measure,
    layer: 0,
    colour: data.colour,
    shown: "words",
    zoom: 1,
    query: "",
    found: null,
    kept: false,
    panes: [],
  };
  COLOURS.cosine = "cosine or score";
  const layers = () => [...new Set(view.panes.flatMap(pane => pane.layers))].sort((one, other) => one - other);

  const select = (label, options, change) => {
    const own = element(
      "select",
      { onchange: () => change(own.value) },
      ...options.map(([value, text]) => element("option", { value, text })),
    );
    return [element("label", {}, label, own), own];
  };
  const [pictureLabel, pictureBox] = select(
    "picture",
    data.pictures.map((one, number) => [number, one.name || `picture ${number + 1}`]),
    value => show(+value),
  );
  const layerBox = element("input", {
    type: "range",
    min: 0,
    max: 0,
    step: 1,
    oninput: () => view.turn(layers()[+layerBox.value]),
  });
  const layerName_ = element("span", { text: "layer" }),
    layerLabel = element("label", { class: "mmx-long" }, layerName_, layerBox);
  const [shownLabel, shownBox] = select("on each patch", Object.entries(SHOWN), value => {
    view.shown = value;
    redraw();
  });
  const [colourLabel, colourBox] = select("colour by", Object.entries(COLOURS), value => {
    view.colour = value;
    redraw();
  });
  const searchBox = element("input", {
    type: "search",
    oninput: () => look(searchBox.value),
    onkeydown: event => {
      if (event.key === "Enter") next();
    },
  });
  const zoomBox = element("input", {
    type: "range",
    min: 1,
    max: 5,
    step: 0.5,
    value: 1,
    oninput: () => {
      view.zoom = +zoomBox.value;
      sized();
      redraw();
    },
  });
  zoomBox.style.width = "6rem";
  const save = (text, told, act) => element("button", { type: "button", text, title: told, onclick: () => act(view) });
  const buttons = element(
    "span",
    { class: "mmx-save", role: "group", "aria-label": "save this figure" },
    save("SVG", "save what is shown as an SVG file", saveSvg),
    save("PNG", "save what is shown as a PNG file", savePng),
    save("print", "print what is shown; “save as PDF” there makes a PDF", printed),
  );
  const bar = element(
    "div",
    { class: "mmx-bar" },
    pictureLabel,
    layerLabel,
    shownLabel,
    colourLabel,
    element("label", {}, "find a word", searchBox),
    element("label", {}, "larger", zoomBox),
    element("label", {}, "save as (print: PDF)", buttons),
  );
  const told = element("p", { class: "mmx-told", text: data.told }),
    status = element("p", { class: "mmx-status mmx-note", role: "status", "aria-live": "polite" });
  const legend = element("div", { class: "mmx-legend" }),
    panes = element("div", { class: "mmx-panes" });
  const patch_ = element("aside", { class: "mmx-patch", "aria-label": "the patch pointed at" });
  const texts = element("dl", { class: "mmx-texts" }),
    table = element("div", { class: "mmx-table", tabindex: "0", role: "region", "aria-label": "as a table" });
  const tables = element("details", { ontoggle: () => tabled() }, element("summary", { text: "as a table" }), table);
  pictureLabel.hidden = data.pictures.length < 2;
  root.replaceChildren(
    root.querySelector(".mmx-data"),
    told,
    bar,
    legend,
    status,
    element("div", { class: "mmx-body" }, panes, patch_),
    texts,
    tables,
  );

  async function show(number) {
    // a picture, its numbers unpacked when it is first shown
    const picture = data.pictures[number];
    picture.open ??= Promise.all(picture.panes.map(raw => pane(raw, data.images)));
    const opened = await picture.open;
    Object.assign(view, { panes: opened, name: picture.name, kept: false, number });
    for (const one of opened) Object.assign(one, { on: null, most: one.attention ? Math.max(...one.attention) : 0 });
    const tops = opened
      .flatMap(one => [...one.cosine].filter((_, at) => at % one.k === 0 && one.word[at])) // of the nearest words
      .filter(value => value !== UNKNOWN);
    view.low = tops.reduce((a, b) => Math.min(a, b), tops.length ? Infinity : 0);
    view.high = tops.reduce((a, b) => Math.max(a, b), tops.length ? -Infinity : 1);
    panes.replaceChildren(
      ...opened.map(one => {
        const figure = drawn(view, one);
        listen(one, figure);
        return figure;
      }),
    );
    texts.replaceChildren(
      ...picture.texts.flatMap(([what, text]) => [element("dt", { text: what }), element("dd", { text, dir: "auto" })]),
    );
    offered();
    sized();
    const all = layers();
    layerLabel.hidden = all.length < 2;
    layerBox.max = Math.max(0, all.length - 1);
    view.turn(all.includes(view.layer) ? view.layer : (all[0] ?? 0));
  }

  function offered() {
    // only what some pane has
    const has = {
      words: true,
      nothing: true,
      cosine: true,
      word: true,
      labels: view.panes.some(one => one.labels),
      truth: view.panes.some(one => one.right),
      attention: view.panes.some(one => one.attention),
    };
    for (const box of [shownBox, colourBox])
      for (const option of box.options) option.hidden = option.disabled = !has[option.value];
    if (!has[view.shown]) shownBox.value = view.shown = "words";
    if (!has[view.colour]) view.colour = "cosine";
    colourBox.value = view.colour;
  }

  view.turn = layer => {
    // to a layer; a pane that has it not shows the nearest that it has
    view.layer = layer;
    for (const one of view.panes)
      one.now = one.layers.reduce(
        (best, own, number) => (Math.abs(own - layer) < Math.abs(one.layers[best] - layer) ? number : best),
        0,
      );
    layerBox.value = layers().indexOf(layer);
    layerName_.textContent = layer ? `layer ${layer}` : "layer 0, as the adapter makes them";
    layerBox.setAttribute("aria-valuetext", layerName_.textContent);
    redraw();
  };

  function redraw() {
    for (const one of view.panes) {
      paint(view, one);
      const share = shareOf(data, view, one),
        remark = one.remarks[one.now];
      one.caption.replaceChildren(
        element("b", { text: one.name || view.name, dir: "auto" }),
        ` ${[layerName(one), remark].filter(Boolean).join(" · ")}`,
        element("div", { class: "mmx-note", text: share }),
      );
      point(view, one, one.on);
    }
    legend.replaceChildren(...legends(view));
    patch_.replaceChildren(...detail(view));
    counted();
    tabled();
  }

  function sized() {
    // cells of whole pixels: no seams
    for (const one of view.panes) {
      const scroll = one.stage.parentNode,
        wide = Math.max(2, Math.floor((scroll.clientWidth * view.zoom) / one.columns));
      one.stage.style.width = `${wide * one.columns}px`;
      one.stage.style.height = `${Math.max(2, Math.round((wide * one.columns * one.shape) / one.rows)) * one.rows}px`;
      scroll.classList.toggle("mmx-large", view.zoom > 1);
    }
  }
  let waiting;
  const tabled = () => {
    clearTimeout(waiting);
    waiting = tables.open ? setTimeout(() => table.replaceChildren(...asTable(view)), 100) : 0;
  };

  // Pointing: panes of one picture and grid point at the same patch
  const linked = (one, other) =>
    one === other ||
    (one.image === other.image && one.rows === other.rows && one.columns === other.columns && one.patches);
  let frame;
  function pointAt(one, token) {
    for (const other of view.panes)
      point(view, other, token !== null && (linked(one, other) || linked(other, one)) ? token : null);
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => patch_.replaceChildren(...detail(view)));
  }
  function letGo() {
    view.kept = false;
    for (const one of view.panes) point(view, one, null);
    patch_.replaceChildren(...detail(view));
  }

  function listen(one, figure) {
    const cellOf = event => event.target.closest?.(".mmx-cell");
    one.stage.addEventListener("pointermove", event => {
      // not where the page moves below a pointer at rest
      const cell = cellOf(event),
        moved = event.screenX !== view.x || event.screenY !== view.y;
      [view.x, view.y] = [event.screenX, event.screenY];
      if (cell && moved && !view.kept && cell.token !== one.on) pointAt(one, cell.token);
    });
    one.stage.addEventListener("pointerleave", () => {
      if (!view.kept && !figure.contains(document.activeElement)) letGo();
    });
    one.stage.addEventListener("click", event => {
      const cell = cellOf(event);
      if (cell) {
        go(one, cell.token);
        view.kept = true;
      }
    });
    one.stage.addEventListener("focusin", event => {
      const cell = cellOf(event);
      if (cell) pointAt(one, cell.token);
    });
    one.stage.addEventListener("keydown", event => pressed(one, event));
  }
  function go(one, token) {
    for (const cell of one.cells) if (cell.tabIndex === 0) cell.tabIndex = -1;
    one.cells[token].tabIndex = 0;
    one.cells[token].focus();
    pointAt(one, token);
  }
  function pressed(one, event) {
    const token = document.activeElement.token ?? 0,
      column = token % one.columns,
      all = layers(),
      at = all.indexOf(view.layer);
    const steps = {
      ArrowRight: token + 1,
      ArrowLeft: token - 1,
      ArrowDown: token + one.columns,
      ArrowUp: token - one.columns,
      Home: token - column,
      End: Math.min(one.tokens - 1, token - column + one.columns - 1),
    };
    if (event.key === "Escape") letGo();
    else if (event.key === "Enter" || event.key === " ") view.kept = !view.kept;
    else if (event.key === "PageDown" && at + 1 < all.length) view.turn(all[at + 1]);
    else if (event.key === "PageUp" && at > 0) view.turn(all[at - 1]);
    else if (event.key in steps) {
      if (steps[event.key] >= 0 && steps[event.key] < one.tokens) {
        view.kept = false;
        go(one, steps[event.key]);
      }
    } else return;
    event.preventDefault();
  }

  // Search: patches that have the word among their nearest at a layer
  function look(text) {
    view.query = text.trim().toLowerCase();
    const match = view.query && data.words.map(word => word.toLowerCase().includes(view.query));
    view.found = match
      ? (one, layer, token) => {
          for (let rank = 0, at = (layer * one.tokens + token) * one.k; rank < one.k; rank++, at++)
            if (match[one.word[at]]) return true;
          return false;
        }
      : null;
    redraw();
  }
  function counted() {
    status.textContent = view.found
      ? view.panes
          .map(one => {
            const counts = (one.layers.length ? one.layers : [0]).map(
                (_, layer) => one.cells.filter(cell => view.found(one, layer, cell.token)).length,
              ),
              most = counts.indexOf(Math.max(...counts));
            return (
              `${[one.name, `“${view.query}”`].filter(Boolean).join(": ")} is near ${counts[one.now] ?? 0} of ${one.tokens} patches here` +
              (one.layers.length > 1 ? `, and near most at layer ${one.layers[most]}: ${counts[most]}` : "")
            );
          })
          .join("; ")
      : "";
  }
  function next() {
    // the next patch that has it
    const one = view.panes[0],
      from = (one.on ?? -1) + 1;
    const hits = view.found ? one.cells.map(cell => cell.token).filter(token => view.found(one, one.now, token)) : [];
    if (hits.length) pointAt(one, hits.find(token => token >= from) ?? hits[0]);
  }

  new ResizeObserver(() => {
    sized();
    for (const one of view.panes) {
      paint(view, one);
      point(view, one, one.on);
    }
  }).observe(panes);
  if (data.pictures.length) await show(0);
  else status.textContent = "no picture";
  view.figure = () => svg(view);
  root.view = view; // for who looks from a console
  root.dataset.ready = "yes";
}

for (const root of document.querySelectorAll(".mmx:not([data-on])")) {
  root.dataset.on = "yes";
  begin(root).catch(err => root.append(element("p", { text: `This part needs a browser of 2023 or newer: ${err}` })));
}
