// Words on patches, from the page's JSON: see packed.py. Letters: P patches, K words of each, L layers.

const KIND = ["", "background", "object"],
  WRONG = 1,
  RIGHT = 2,
  UNKNOWN = -32768;

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), char => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function joined(bytes, wide, made) {
  // numbers of `wide` planes
  for (let place = 0; place < wide; place++)
    for (let at = 0; at < made.length; at++) made[at] |= bytes[place * made.length + at] << (8 * place);
  return made;
}

async function ranked(raw) {
  // {k, word, cosine}, both L x P x K
  const words = await inflated(raw.word),
    cosines = await inflated(raw.cosine),
    many = words.length / raw.wide;
  const cosine = joined(cosines, 2, new Int32Array(many)).map(value => value - 32768);
  return { k: raw.k, word: joined(words, raw.wide, new Uint32Array(many)), cosine };
}

async function pane(raw, images) {
  // a pane with its numbers unpacked
  const tokens = raw.tokens,
    own = { ...raw, picture: images[raw.image], patches: raw.grid !== null, ...(await ranked(raw)) };
  [own.rows, own.columns] = raw.grid || [Math.ceil(tokens / Math.min(8, tokens || 1)), Math.min(8, tokens || 1)];
  for (const name of ["seen", "right", "object"]) own[name] = raw[name] ? await inflated(raw[name]) : null;
  own.labels = raw.labels ? await ranked(raw.labels) : null;
  if (own.labels && !raw.layers.length) Object.assign(own, own.labels, { labels: null }); // labels alone: they are its words
  return own;
}

const measured = cosine => (cosine === UNKNOWN ? "–" : (cosine / 1000).toFixed(3));

const wordsAt = (of, layer, token, tokens, table) => {
  // [[word, cosine], ...] of one patch
  const made = [];
  for (let rank = 0, at = (layer * tokens + token) * of.k; rank < of.k; rank++, at++)
    if (of.word[at]) made.push([table[of.word[at]], of.cosine[at]]);
  return made;
};

const place = (pane, token) =>
  pane.patches
    ? `row ${Math.floor(token / pane.columns) + 1}, column ${(token % pane.columns) + 1}`
    : `token ${token + 1}`;

// Colours. A ramp whose lightness rises evenly, and two colours that the colour-blind tell apart (Okabe and Ito)
const RAMP = [
  [48, 18, 90],
  [44, 90, 150],
  [30, 150, 138],
  [120, 200, 90],
  [250, 230, 60],
];
const TRUE = { right: [0, 114, 178], wrong: [230, 120, 0] };

function ramp(share) {
  const at = Math.max(0, Math.min(1, share || 0)) * (RAMP.length - 1),
    low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((value, channel) => Math.round(value + (RAMP[low + 1][channel] - value) * (at - low)));
}

function hue(word) {
  // of a word, the same everywhere
  let hash = 2166136261;
  for (let at = 0; at < word.length; at++) hash = Math.imul(hash ^ word.charCodeAt(at), 16777619);
  const turn = ((hash >>> 8) % 360) / 60,
    level = hash & 1 ? 225 : 160,
    low = hash & 2 ? 60 : 25;
  const mid = low + (level - low) * (1 - Math.abs((turn % 2) - 1));
  return [
    [level, mid, low],
    [mid, level, low],
    [low, level, mid],
    [low, mid, level],
    [mid, low, level],
    [level, low, mid],
  ][Math.floor(turn)].map(Math.round);
}

const css = (rgb, alpha = 1) => `rgba(${rgb.join(", ")}, ${alpha})`;
const inkOn = rgb => (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#000" : "#fff");

function element(name, more = {}, ...inside) {
  // texts are set as texts, never as HTML
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(more)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}
