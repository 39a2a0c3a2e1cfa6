// What is shown, as a figure for a paper: SVG, a PNG made of it, or printed (and so a PDF).

const SIDE = 640,
  GAP = 24,
  HEAD = 44; // px
const xml = text =>
  String(text)
    .replace(/[&<>"']/g, char => `&#${char.charCodeAt(0)};`)
    .replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "");

function svg(view) {
  const parts = [];
  let left = GAP,
    high = 0;
  for (const pane of view.panes) {
    const tall = pane.patches
      ? (SIDE * pane.picture.height) / pane.picture.width
      : (SIDE * pane.rows) / pane.columns / 2;
    parts.push(
      `<g transform="translate(${left} ${HEAD})">`,
      `<text class="head" y="-10">${xml([pane.name, view.name, layerName(pane)].filter(Boolean).join(" · "))}</text>`,
    );
    if (pane.patches)
      parts.push(
        `<image width="${SIDE}" height="${tall}" preserveAspectRatio="none"${pane.picture.width <= 128 ? ' style="image-rendering: pixelated"' : ""} href="data:image/png;base64,${pane.picture.png}"/>`,
      );
    parts.push(...pane.cells.map(cell => patch(view, pane, cell.token, SIDE / pane.columns, tall / pane.rows)), "</g>");
    left += SIDE + GAP;
    high = Math.max(high, tall);
  }
  const height = high + HEAD + 40,
    told = `${legendText(view)}`;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${left}" height="${height}" viewBox="0 0 ${left} ${height}" role="img" font-family="sans-serif">` +
    `<title>${xml(view.name)}</title><desc>${xml(view.told)} ${xml(told)}</desc>` +
    `<style>.head { font-size: 16px; font-weight: 600 } .word { fill: #fff; stroke: #000; stroke-width: 2.5px; paint-order: stroke; stroke-linejoin: round; text-anchor: middle; dominant-baseline: central } .note { font-size: 13px; fill: #444 }</style>` +
    `<rect width="100%" height="100%" fill="#fff"/>${parts.join("")}<text class="note" x="${GAP}" y="${height - 14}">${xml(told)}</text></svg>`
  );
}

function patch(view, pane, token, wide, high) {
  const x = (token % pane.columns) * wide,
    y = Math.floor(token / pane.columns) * high,
    padding = pane.seen && !pane.seen[token];
  const [rgb, alpha] = (padding ? [[128, 128, 128], 0.7] : colourOf(view, pane, token)) || [
    [0, 0, 0],
    pane.patches ? 0 : 0.08,
  ];
  const word = wordOn(view, pane, token),
    size = word ? letters(word, wide, high) : 0;
  const box = `<rect x="${x.toFixed(2)}" y="${y.toFixed(2)}" width="${wide.toFixed(2)}" height="${high.toFixed(2)}" fill="${css(rgb)}" fill-opacity="${alpha}" stroke="#fff" stroke-opacity=".25"><title>${xml(spoken(view, pane, token))}</title></rect>`;
  return size
    ? `${box}<text class="word" x="${(x + wide / 2).toFixed(2)}" y="${(y + high / 2).toFixed(2)}" font-size="${size}">${xml(word)}</text>`
    : box;
}

function saved(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = view =>
  [view.name, layerName(view.panes[0])]
    .filter(Boolean)
    .join("-")
    .replace(/[^\w.-]+/g, "-");
const saveSvg = view => saved(new Blob([svg(view)], { type: "image/svg+xml" }), `${fileName(view)}.svg`);

async function savePng(view) {
  // two pixels for one
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg(view))}`;
  await image.decode();
  const canvas = element("canvas", { width: image.width * 2, height: image.height * 2 });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob(blob => saved(blob, `${fileName(view)}.png`), "image/png");
}

function printed(view) {
  // alone on a page: the browser's print makes a PDF of it
  const own = element("div", { class: "mmx-print" });
  own.append(document.importNode(new DOMParser().parseFromString(svg(view), "image/svg+xml").documentElement, true));
  document.body.append(own);
  document.documentElement.classList.add("mmx-printing");
  addEventListener(
    "afterprint",
    () => {
      own.remove();
      document.documentElement.classList.remove("mmx-printing");
    },
    { once: true },
  );
  print();
}
