// What colours mean, and how many patches are right.

function shareOf(data, view, one) {
  // how many are right here, and over all pictures
  if (!one.right) return "";
  const all =
    Object.fromEntries((data.shares[one.name] || []).map(([layer, own]) => [layer, own]))[one.layers[one.now]] || {};
  return [2, 1]
    .map(kind => {
      let right = 0,
        judged = 0;
      for (let token = 0; token < one.tokens; token++) {
        const own = one.object[token] === kind ? one.right[one.now * one.tokens + token] : 0;
        judged += own > 0;
        right += own === RIGHT;
      }
      const [allRight, allJudged] = all[kind] || [0, 0],
        percent = (a, b) => `${((100 * a) / b).toFixed(2)} %`;
      if (!allJudged) return "";
      const here = judged ? `${percent(right, judged)} (${right} of ${judged})` : "none here",
        several = data.pictures.length > 1;
      return `${KIND[kind]} patches right: ${here}${several ? `, of all pictures ${percent(allRight, allJudged)} (${allRight} of ${allJudged})` : ""}`;
    })
    .filter(Boolean)
    .join(" · ");
}

function legendParts(view) {
  // [text, colour or colours]
  const parts = [];
  if (view.colour === "cosine") parts.push([`${view.measure} ${measured(view.low)} to ${measured(view.high)}`, RAMP]);
  if (view.colour === "attention") parts.push(["text looks here: least to most", RAMP]);
  if (view.colour === "word") parts.push(["a colour for each word", null]);
  if (view.colour === "truth")
    parts.push(["right", [TRUE.right]], ["wrong", [TRUE.wrong]], ["fainter: background; none: not judged", null]);
  return parts;
}
const legendText = view =>
  legendParts(view)
    .map(
      ([text, colours]) =>
        text + (colours?.length > 1 ? ", dark to light" : colours ? (text === "right" ? " (blue)" : " (orange)") : ""),
    )
    .join("; ");
function legends(view) {
  const made = legendParts(view).map(([text, colours]) => {
    const swatch = colours && element("i", { class: colours.length > 1 ? "mmx-ramp" : "" });
    if (swatch)
      swatch.style.background =
        colours.length > 1 ? `linear-gradient(to right, ${colours.map(rgb => css(rgb)).join(", ")})` : css(colours[0]);
    return element("span", {}, ...(swatch ? [swatch] : []), text);
  });
  if (view.panes.some(one => one.seen && one.seen.includes(0)))
    made.push(element("span", { text: "hatched: padding" }));
  return made;
}
