// Draws what token_view.py sends. A box is a token, or the tokens that share a character; every panel has the same boxes. They are built once for a
// text; later data change attributes alone, so that keyboard focus stays where it is. Text is only ever set as text.

const ROLES = { s: "special", t: "template", c: "content" };
const UNSEEN = /\p{Cc}|\p{Cf}|\p{Zl}|\p{Zp}|\p{Variation_Selector}|(?! )\p{Zs}/u;
const JOINING = /[\u200c\u200d\p{Variation_Selector}\u{e0020}-\u{e007f}]/u; // beside seen characters they shape them
const TAKEN_IN = /^[\p{Emoji_Modifier}\p{Regional_Indicator}]/u; // by the character before it, which then alone is drawn
const NOTHING_SEEN = /^[\p{Cc}\p{Cf}\p{Z}\p{M}]*$/u;
const FLOOR = 0.1; // part of the full colour for the smallest value above 0
const BLOCK = 100; // boxes, at least, that the browser lays out together; what is out of sight it leaves for later
const NARROW = matchMedia("(max-width: 40rem)"); // as in the style sheet: there one panel is shown at a time
const SAME_LINE = 10; // pixels between the middles of boxes on one line, at most

const ALL_UNSEEN = new RegExp(UNSEEN, "gu");
const DIGITS = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** Text in quotes, all that cannot be seen escaped. */
const written = text => JSON.stringify(text).replace(ALL_UNSEEN, c => `\\u{${c.codePointAt(0).toString(16).padStart(4, "0")}}`);

const number = (value, signed) => (value === null ? "no value" : (signed && value > 0 ? "+" : "") + DIGITS.format(value).replace("-", "\u2212"));

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Put text into a box; what cannot be seen stands in an element of its own, which the style sheet marks. */
function write(box, text) {
  box.classList.toggle("apart", TAKEN_IN.test(text));
  const nothing = NOTHING_SEEN.test(text);
  if (!nothing && !UNSEEN.test(text)) return void (box.textContent = text);
  let seen = "";
  for (const character of text) {
    if (!nothing && (!UNSEEN.test(character) || JOINING.test(character))) seen += character;
    else {
      const kind = character === "\n" ? "newline" : character === "\t" ? "tab" : /\p{Zs}/u.test(character) ? "space" : UNSEEN.test(character) ? "unseen" : "joining";
      box.append(seen, element("i", kind, character));
      seen = "";
    }
  }
  box.append(seen);
  box.classList.toggle("empty", !text);
}

/** Percent of the corpus' active tokens with a lower value; null where the latent is not active or the corpus not known. */
function percentile(quantiles, value) {
  if (!quantiles.length || !(value > 0)) return null;
  const above = quantiles.findIndex(q => q > value);
  if (above < 1) return above ? 100 : 0;
  const [low, high] = [quantiles[above - 1], quantiles[above]];
  return (100 * (above - 1 + (value - low) / (high - low))) / (quantiles.length - 1);
}

class View {
  boxes = []; // [panel][box], elements
  pointed = null; // the element that the tooltip tells of
  at = null; // the one tab stop
  shown = null; // the panel that a narrow window shows

  constructor(parent) {
    this.root = element("div", "view");
    this.legend = element("div", "legend");
    this.switch = element("div", "switch");
    Object.assign(this.switch, { role: "group", ariaLabel: "Panel" });
    this.panels = element("div", "panels");
    this.note = element("div", "note");
    this.tip = element("div", "tip");
    Object.assign(this.tip, { id: "tip", popover: "manual", role: "tooltip" });
    this.root.append(this.legend, this.switch, this.panels, this.note, this.tip);
    parent.append(this.root);
    const box = event => event.target.closest("[role=option]");
    this.panels.onpointerover = event => (box(event) ? this.point(box(event)) : this.rest());
    this.panels.onpointerleave = event => event.pointerType !== "touch" && this.rest(); // a finger leaves as soon as it has tapped
    this.panels.onpointerdown = event => box(event) && this.stop(box(event));
    this.panels.onclick = event => box(event) && this.click(box(event));
    this.panels.addEventListener("focusin", event => event.target.matches("[role=option]:focus-visible") && this.point(event.target));
    this.panels.addEventListener("focusout", event => this.panels.contains(event.relatedTarget) || this.point(null));
    this.panels.onkeydown = event => this.key(event);
    this.panels.onscroll = () => this.place();
    this.panels.oncopy = event => this.copy(event);
    this.onNarrow = () => this.show(this.shown);
    NARROW.addEventListener("change", this.onNarrow);
  }

  update(data, say) {
    this.say = say;
    const old = this.data;
    const isOther = old?.tokens !== data.tokens || old.panels.length !== data.panels.length;
    this.data = data;
    this.root.classList.toggle("dark", isBright(getComputedStyle(this.root).color));
    if (isOther) this.build();
    if (isOther || old.panels !== data.panels) this.colour();
    this.tell();
    this.show(isOther ? data.panels.length - 1 : this.shown); // the difference, where there is one
    this.pin(data.pin === null ? null : this.firsts.findLastIndex(first => first <= data.pin));
    const told = this.pinned ?? Math.max(0, data.roles.indexOf("c")); // what the template says first is scrolled past
    const wanted = this.boxes[NARROW.matches ? this.shown : 0]?.[told];
    if (wanted && (isOther || (this.pinned !== null && old.pin !== data.pin))) this.follow(wanted);
    if (this.pointed) this.point(this.pointed);
  }

  build() {
    const { texts, roles, sizes, bands, names, panels } = this.data;
    const focused = this.root.getRootNode().activeElement;
    const kept = this.panels.contains(focused) ? focused : null;
    this.point(null);
    this.firsts = []; // place of each box's first token
    sizes.reduce((place, size) => (this.firsts.push(place), place + size), 0);
    const sections = panels.map((panel, p) => {
      const list = element("div", "list");
      list.role = "listbox";
      bands.forEach(([first, turn], b) => {
        const band = element("div", names.length ? "band turn" : "band");
        if (names[turn]) Object.assign(band, { role: "group", ariaLabel: names[turn] });
        let block = null;
        for (let i = first; i < (bands[b + 1]?.[0] ?? texts.length); i++) {
          if (!block || (block.childElementCount >= BLOCK && texts[i - 1].endsWith("\n"))) band.append((block = element("div", "block")));
          const box = element("span", roles[i] === "c" ? "" : texts[i].includes("\n") ? "pill breaks" : "pill");
          box.role = "option";
          box.dataset.role = ROLES[roles[i]];
          box.ariaSelected = "false";
          Object.assign(box, { panel: p, place: i });
          write(box, texts[i]);
          block.append(box);
        }
        list.append(band);
      });
      const section = element("section", "panel");
      section.append(element("div", "title"), list);
      return section;
    });
    this.panels.replaceChildren(...(texts.length ? sections : [element("p", "none", "There are no tokens to show.")]));
    const buttons = panels.length > 1 && texts.length ? panels.map((_, p) => Object.assign(element("button", ""), { type: "button", onclick: () => this.show(p) })) : [];
    this.switch.replaceChildren(...buttons);
    this.boxes = sections.map(section => [...section.querySelectorAll("[role=option]")]);
    this.pinned = null;
    this.at = null;
    this.stop(this.boxes[kept?.panel ?? 0]?.[kept?.place ?? 0] ?? this.boxes[0]?.[0]);
    if (kept) this.at?.focus({ preventScroll: true });
  }

  colour() {
    const { texts, roles, panels, scales, special, name } = this.data;
    this.boxes.forEach((boxes, p) => {
      const { title, signed } = panels[p];
      const [heading, list] = this.panels.children[p]?.children ?? [];
      if (!list) return;
      heading.textContent = title;
      if (this.switch.children[p]) Object.assign(this.switch.children[p], { textContent: signed ? "Difference" : title, title });
      list.ariaLabel = `${title}: ${name}`;
      boxes.forEach((box, i) => {
        const values = this.values(p, i);
        const most = values.reduce((best, v) => ((signed ? Math.abs(v) > Math.abs(best) : v > best) ? v : best), 0);
        const part = special || roles[i] === "c" ? Math.min(1, Math.abs(most) / scales[+signed] || 0) : 0;
        box.classList.toggle("rise", part > 0 && most > 0);
        box.classList.toggle("fall", part > 0 && most < 0);
        box.classList.toggle("missing", values.includes(null));
        if (part > 0) box.style.setProperty("--part", (FLOOR + (1 - FLOOR) * part).toFixed(3));
        box.ariaLabel = `${written(texts[i])}${roles[i] === "c" ? "" : `, ${ROLES[roles[i]]}`}, ${values.map(v => number(v, signed)).join(" and ")}`;
      });
    });
  }

  /** In a narrow window show one panel; the tab stop goes along. */
  show(panel) {
    this.shown = panel;
    const kind = this.data.panels[panel]?.signed;
    [...this.panels.children].forEach((section, p) => section.classList.toggle("shown", p === panel || section.matches(".none")));
    for (const scale of this.legend.querySelectorAll(".scale")) scale.classList.toggle("shown", scale.matches(".signed") === kind);
    [...this.switch.children].forEach((button, p) => (button.ariaPressed = String(p === panel)));
    if (NARROW.matches) this.stop(this.boxes[panel]?.[this.at?.place ?? 0]);
  }

  /** The legend: what the values are, the scales; below the panels what has no fill. */
  tell() {
    const { name, panels, scales, roles, special } = this.data;
    const parts = [element("span", "name", name)];
    for (const signed of [false, true]) {
      const titles = panels.filter(panel => panel.signed === signed).map(panel => panel.title);
      if (!titles.length || !roles) continue;
      const scale = element("span", signed ? "scale signed" : "scale");
      const most = scales[+signed];
      scale.append(element("span", "whose", titles.join(", ")));
      if (most) scale.append(signed ? number(-most) : "0", element("span", "ramp"), number(most, signed));
      else scale.append(signed ? "0 on every token" : "not above 0 on any token");
      parts.push(scale);
    }
    const notes = ["No fill: 0"];
    if (panels.some(panel => panel.values.includes(null))) notes.push("stripes: no value");
    if (panels.some(panel => panel.signed)) notes.push("dotted line: below 0");
    if (!special && /[st]/.test(roles)) notes.push("special and template tokens are left out");
    this.note.textContent = roles ? notes.join("; ") : "";
    this.legend.replaceChildren(...parts);
  }

  values(panel, i) {
    return this.data.panels[panel].values.slice(this.firsts[i], this.firsts[i] + this.data.sizes[i]);
  }

  /** Show the tooltip of a box and mark the same box in every panel; null hides both. */
  point(box) {
    for (const boxes of this.boxes) {
      boxes[this.pointed?.place]?.classList.remove("pointed");
      if (box) boxes[box.place].classList.add("pointed");
    }
    this.pointed?.removeAttribute("aria-describedby");
    this.pointed = box;
    if (!box) return this.tip.hidePopover();
    box.setAttribute("aria-describedby", "tip");
    this.explain(box.place);
    this.tip.showPopover();
    this.place();
  }

  explain(i) {
    const { texts, ids, roles, turns, names, sizes, panels, quantiles } = this.data;
    const places = Array.from({ length: sizes[i] }, (_, n) => this.firsts[i] + n);
    const table = element("table", "");
    const row = (heading, cells, notes = []) => {
      const made = table.insertRow();
      made.append(element("th", "", heading));
      cells.forEach((cell, n) => made.append(element("td", "", cell), element("td", "rank", notes[n])));
    };
    let hasRank = false;
    for (const [p, { title, signed }] of panels.entries()) {
      const values = this.values(p, i);
      const ranks = values.map(value => (signed ? null : percentile(quantiles, value)));
      hasRank ||= ranks.some(rank => rank !== null);
      row(title, values.map(value => number(value, signed)), ranks.map(rank => (rank === null ? "" : `p${rank.toFixed(rank > 99 && rank < 100 ? 1 : 0)}`)));
    }
    row("id", places.map(place => ids[place]));
    row("position", places);
    const turn = names[turns[i]] ? `, ${names[turns[i]]} (message ${turns[i] + 1})` : "";
    const shared = sizes[i] > 1 ? `; ${sizes[i]} tokens share it` : "";
    this.tip.replaceChildren(element("div", "text", written(texts[i])), element("div", "role", ROLES[roles[i]] + turn + shared), table);
    if (hasRank) this.tip.append(element("div", "role", "p: percentile where active in the corpus"));
  }

  /** Put the tooltip below its box, or above where there is no room. */
  place() {
    if (!this.pointed) return;
    const box = this.pointed.getClientRects()[0];
    const { width, height } = this.tip.getBoundingClientRect();
    const top = box.bottom + 6 + height > innerHeight ? box.top - 6 - height : box.bottom + 6;
    this.tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
    this.tip.style.top = `${Math.max(8, top)}px`;
  }

  /** The pointer is on no box: tell of the one with keyboard focus, if any. */
  rest() {
    this.point(this.panels.querySelector("[role=option]:focus-visible"));
  }

  /** Make a box the tab stop; keyboard focus goes along, for a box that loses its tab stop would lose it. */
  stop(box) {
    const old = this.at;
    this.at = box ?? null;
    if (old === this.at) return;
    if (box) box.tabIndex = 0;
    if (box && old?.matches(":focus")) box.focus({ preventScroll: true });
    old?.removeAttribute("tabindex");
  }

  click(box) {
    this.pin(box.place);
    this.say({ place: this.firsts[box.place], tokens: this.data.tokens, at: Date.now() });
  }

  pin(place) {
    for (const boxes of this.boxes) {
      if (this.pinned !== null) boxes[this.pinned].ariaSelected = "false";
      if (place !== null) boxes[place].ariaSelected = "true";
    }
    this.pinned = place;
  }

  /** Scroll the panels, not the page, until a box is in their window: what comes into sight gets its true height only then. */
  follow(box, frames = 6) {
    this.followed = box;
    const [own, window] = [box.getBoundingClientRect(), this.panels.getBoundingClientRect()];
    if (own.top < window.top || own.bottom > window.bottom) this.panels.scrollTop += own.top - window.top - window.height / 3;
    if (frames) requestAnimationFrame(() => this.followed === box && this.follow(box, frames - 1));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.at) return;
    const boxes = this.boxes[this.at.panel];
    const next = {
      ArrowRight: () => boxes[this.at.place + 1],
      ArrowLeft: () => boxes[this.at.place - 1],
      ArrowDown: () => this.lineFrom(this.at, 1),
      ArrowUp: () => this.lineFrom(this.at, -1),
      Home: () => boxes[0],
      End: () => boxes.at(-1),
    }[event.key];
    if (next) this.go(next() ?? this.at);
    else if (event.key === "Enter" || event.key === " ") this.click(this.at);
    else if (event.key === "Escape") this.point(null);
    else return;
    event.preventDefault();
  }

  go(box) {
    this.stop(box);
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
    this.follow(box);
    this.point(box);
  }

  /** The box of the next line, in a direction, that is nearest across. */
  lineFrom(box, direction) {
    const middle = rect => [(rect.left + rect.right) / 2, (rect.top + rect.bottom) / 2];
    const [x, y] = middle(box.getClientRects()[0]);
    const boxes = this.boxes[box.panel];
    let [nearest, line, least] = [null, null, Infinity];
    for (let i = box.place + direction; boxes[i]; i += direction) {
      const [left, top] = middle(boxes[i].getClientRects()[0]);
      if (Math.abs(top - y) < SAME_LINE) continue;
      line ??= top;
      if (Math.abs(top - line) > SAME_LINE) break;
      if (Math.abs(left - x) < least) [nearest, least] = [boxes[i], Math.abs(left - x)];
    }
    return nearest;
  }

  /** What is copied is the text of the tokens to the byte, control tokens left out. */
  copy(event) {
    const selection = this.root.getRootNode().getSelection?.() ?? getSelection();
    if (!selection.rangeCount || selection.isCollapsed) return;
    const copied = selection.getRangeAt(0).cloneContents();
    copied.querySelectorAll("[data-role=special], .title").forEach(left => left.remove());
    event.clipboardData.setData("text/plain", copied.textContent);
    event.preventDefault();
  }
}

function isBright(colour) {
  const [red, green, blue] = colour.match(/[\d.]+/g).map(Number);
  return 0.21 * red + 0.72 * green + 0.07 * blue > 128;
}

const views = new WeakMap();

export default function ({ data, parentElement, setStateValue }) {
  if (!views.has(parentElement)) views.set(parentElement, new View(parentElement));
  const view = views.get(parentElement);
  view.update(data, click => setStateValue("clicked", click));
  return () => {
    view.root.remove();
    NARROW.removeEventListener("change", view.onNarrow);
    views.delete(parentElement);
  };
}
