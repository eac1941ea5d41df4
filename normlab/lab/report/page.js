"use strict";
// Hover, keyboard, downloads, folding and colours. The page reads well without it.
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const says = new Map(); // mark -> its words, which a browser would show late and not to keys
  for (const title of all(".drawing title")) {
    says.set(title.parentNode, title.textContent);
    title.remove();
  }

  let shown = null;
  function show(mark) {
    if (mark === shown) return;
    if (shown) shown.classList.remove("at");
    shown = mark;
    tip.textContent = mark ? says.get(mark) : "";
    if (!mark) return;
    mark.classList.add("at");
    const box = mark.getBoundingClientRect(), room = root.clientWidth - tip.offsetWidth - 8;
    const y = box.top - tip.offsetHeight - 8;
    tip.style.left = Math.max(8, Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, room)) + "px";
    tip.style.top = (y > 4 ? y : box.bottom + 8) + "px";
  }
  function near(x, y) { // thin lines are hard to hit
    for (const [dx, dy] of [[0, 0], [0, 4], [0, -4], [4, 0], [-4, 0]]) {
      const found = document.elementsFromPoint(x + dx, y + dy).find((e) => says.has(e));
      if (found) return found;
    }
    return null;
  }
  for (const drawing of all(".drawing")) {
    drawing.addEventListener("pointermove", (e) => show(near(e.clientX, e.clientY)));
    drawing.addEventListener("pointerdown", (e) => show(near(e.clientX, e.clientY)));
    drawing.addEventListener("pointerleave", () => show(null));
    drawing.addEventListener("blur", () => show(null));
    drawing.addEventListener("keydown", (e) => {
      const marks = all("*", drawing).filter((m) => says.has(m));
      const last = marks.length - 1, at = marks.indexOf(shown);
      const to = {
        ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? last : at - 1,
        ArrowUp: at < 0 ? last : at - 1, Home: 0, End: last,
      }[e.key];
      if (e.key === "Escape") show(null);
      if (to === undefined || !marks.length) return;
      e.preventDefault();
      show(marks[Math.max(0, Math.min(to, last))]);
    });
  }
  addEventListener("scroll", () => show(null), { passive: true });

  // the same figure against something else
  const choices = all(".choices");
  function choose(group, what) {
    show(null);
    for (const b of all("button", group)) b.setAttribute("aria-pressed", b.dataset.choice === what);
    for (const d of all(".drawing[data-of]", group.parentNode)) d.hidden = d.dataset.of !== what;
  }
  for (const group of choices) {
    group.hidden = false;
    group.addEventListener("click", (e) => {
      if (e.target.dataset.choice) choose(group, e.target.dataset.choice);
    });
  }

  // downloads: what is on the page, so nothing is fetched
  const name = (text) => text.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60).toLowerCase();
  function save(blob, file) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  function cell(text) {
    let plain = text.replace(/\u2212/g, "-");
    // a spreadsheet would compute what begins like this, unless it is a number
    if (/^[=+\-@\t\r]/.test(plain) && !/^[+-]?[\d.,]+$/.test(plain)) plain = "'" + plain;
    return /[",\r\n]/.test(plain) ? '"' + plain.replace(/"/g, '""') + '"' : plain;
  }
  function csv(table) {
    return [...table.rows].map((r) => [...r.cells].map((c) => cell(c.textContent)).join(",") + "\r\n").join("");
  }
  const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin",
    "stroke-linecap", "opacity", "font-size", "font-weight", "font-family", "text-anchor"];
  const NS = "http://www.w3.org/2000/svg";
  const made = (tag, values) => {
    const element = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
    return element;
  };
  function standing(svg) { // a copy that needs no style sheet
    const copy = svg.cloneNode(true), ours = all("*", svg);
    all("*", copy).forEach((element, i) => {
      const style = getComputedStyle(ours[i]);
      for (const key of KEPT) element.setAttribute(key, style.getPropertyValue(key));
      element.removeAttribute("class");
      if (says.has(ours[i])) element.appendChild(made("title", {})).textContent = says.get(ours[i]);
    });
    copy.removeAttribute("class");
    return copy;
  }
  function picture(figure) { // its drawing, or all its panels, two in a row, under their names
    const drawing = all(".drawing", figure).find((d) => d.offsetParent !== null);
    const parts = all("svg", drawing), style = getComputedStyle(document.body);
    const many = all(".panel", drawing).length > 0, columns = many ? Math.min(2, parts.length) : 1;
    const [width, height] = ["width", "height"].map((k) => Math.max(...parts.map((p) => p.viewBox.baseVal[k])));
    const head = many ? 24 : 0, foot = 8;
    const keys = all(".legend li", figure), lines = Math.ceil(keys.length / 4);
    const w = columns * (width + 16), h = Math.ceil(parts.length / columns) * (height + head) + 20 * lines + foot;
    const svg = made("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}` });
    svg.append(made("rect", { width: w, height: h, fill: style.backgroundColor }));
    const text = (x, y, words, weight) => {
      const element = made("text", { x, y, fill: style.color, "font-size": 12, "font-weight": weight, "font-family": "sans-serif" });
      element.textContent = words;
      svg.append(element);
    };
    keys.forEach((key, i) => {
      const x = 12 + (i % 4) * (w / 4), y = 8 + 20 * Math.floor(i / 4);
      const swatch = standing(key.querySelector("svg"));
      for (const [k, v] of Object.entries({ x, y, width: 22, height: 10 })) swatch.setAttribute(k, v);
      svg.append(swatch);
      text(x + 28, y + 9, key.textContent, 400);
    });
    parts.forEach((part, i) => {
      const x = (i % columns) * (width + 16) + 8, y = 20 * lines + Math.floor(i / columns) * (height + head);
      if (many) text(x + 4, y + 18, (part.parentNode.querySelector(".panel-title") || {}).textContent || "", 600);
      const copy = standing(part);
      for (const [k, v] of Object.entries({ x, y: y + head, width, height })) copy.setAttribute(k, v);
      svg.append(copy);
    });
    return [new XMLSerializer().serializeToString(svg), w, h];
  }
  function png(source, w, h, file) {
    const image = new Image(), canvas = document.createElement("canvas"), scale = 3;
    [canvas.width, canvas.height] = [w * scale, h * scale];
    image.onload = () => {
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => blob && save(blob, file), "image/png");
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(source);
  }
  for (const span of all(".saves")) span.hidden = false;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-save]");
    if (!button) return;
    const kind = button.dataset.save, what = button.getAttribute("aria-label").replace(/^\w+ of /, "");
    const file = (name(what) || "normlab") + "." + kind.toLowerCase();
    if (kind === "CSV") {
      const text = csv(button.closest(".table").querySelector("table"));
      save(new Blob(["\ufeff", text], { type: "text/csv" }), file);
      return;
    }
    const [source, w, h] = picture(button.closest("figure"));
    if (kind === "SVG") save(new Blob([source], { type: "image/svg+xml" }), file);
    else png(source, w, h, file);
  });

  // folding
  const sections = all("details.section"), fold = document.getElementById("fold");
  if (fold) {
    fold.hidden = false;
    const label = () => { fold.textContent = sections.some((s) => s.open) ? "Fold all" : "Unfold all"; };
    fold.addEventListener("click", () => {
      const open = !sections.some((s) => s.open);
      for (const section of sections) section.open = open;
    });
    for (const section of sections) section.addEventListener("toggle", label);
    label();
  }
  function reveal() {
    const found = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let part = found; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    if (found) found.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  for (const link of all("nav a")) link.addEventListener("click", () => setTimeout(reveal));
  reveal();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])").filter((d) => !d.closest(".run") && !d.querySelector(".run"));
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of folded) part.open = false; });

  // kept for this tab only; a page from disk may have no storage
  const remember = (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* none */ } };
  const remembered = (key) => { try { return sessionStorage.getItem(key); } catch { return null; } };
  const theme = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    theme.textContent = now === "dark" ? "Light" : "Dark";
    theme.setAttribute("aria-label", `${theme.textContent} colours`);
  };
  const chosen = remembered("normlab-theme");
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = theme.textContent.toLowerCase();
    remember("normlab-theme", root.dataset.theme);
    paint();
  });
  dark.addEventListener("change", paint);
  paint();

  // served by normlab report --watch: comes again when runs have gone on, as it was left
  if (!root.dataset.watch) return;
  const place = JSON.parse(remembered("normlab-place") || "null");
  if (place) {
    for (const part of all("details[id]")) part.open = place.open.includes(part.id);
    choices.forEach((group, i) => place.chosen && place.chosen[i] && choose(group, place.chosen[i]));
    scrollTo(0, place.y);
  }
  setInterval(async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (!answer.ok || (await answer.text()) === root.dataset.watch) return;
    } catch {
      return; // the server has ended; the page stays as it is
    }
    const open = all("details[id]").filter((d) => d.open).map((d) => d.id);
    const chosen = choices.map((g) => (g.querySelector("[aria-pressed=true]") || { dataset: {} }).dataset.choice);
    remember("normlab-place", JSON.stringify({ y: scrollY, open, chosen }));
    location.reload();
  }, 2000);
})();
