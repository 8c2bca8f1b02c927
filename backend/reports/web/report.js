// A page of findings: charts by Vega, tokens as in the dashboard, tables and answers that are searched and sorted, presentation. All data are in the page;
// text is only ever set as text. drawTokens and TOKEN_STYLE stand before this.

const DATA = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = { table: 40, answers: 8 }; // rows, until more are asked for
const SCREEN = 860; // pixels: how wide a chart of a presentation is drawn before it is scaled
const PRINTED = 40; // rows of a table that is printed with its picture
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

const shown = cell => (cell === null || cell === undefined ? "" : typeof cell === "number" ? NUMBER.format(cell).replace("-", "\u2212") : String(cell));

/** Numbers as numbers, texts as texts, what is missing last either way. */
function byColumn(column, direction) {
  return (a, b) => {
    const [x, y] = [a[column], b[column]];
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  };
}

// Rows: tables, and answers as a list

class Rows {
  words = "";
  column = -1;
  direction = 1;

  constructor(parent, { title, columns, rows }, isAnswers) {
    Object.assign(this, { parent, title, columns, rows, isAnswers });
    this.n = this.first = isAnswers ? AT_ONCE.answers : AT_ONCE.table;
    this.texts = rows.map(row => row.join("\n").toLowerCase());
    this.tools = make("div", "finder");
    if (rows.length > 8) this.search();
    if (isAnswers && rows.length > 1) this.order();
    this.count = make("p", "count");
    this.count.role = "status";
    this.body = isAnswers ? make("ul", "said-list") : make("div", "scroll");
    this.more = make("button", "more", "Show more");
    this.more.type = "button";
    this.more.onclick = () => this.show((this.n += 10 * this.first));
    parent.replaceChildren(this.tools, this.count, this.body, this.more);
    this.show();
  }

  search() {
    const label = make("label", "", "Search ");
    const field = Object.assign(make("input"), { type: "search", autocomplete: "off" });
    field.oninput = () => {
      this.words = field.value.toLowerCase();
      this.n = this.first;
      this.show();
    };
    label.append(field);
    this.tools.append(label);
  }

  order() {
    const label = make("label", "", "Order ");
    const field = make("select");
    field.add(new Option("As kept", "-1 1"));
    this.columns.forEach((name, column) => {
      if (!this.rows.some(row => typeof row[column] === "number")) return void (name === "Variant" && field.add(new Option("Variant", `${column} 1`)));
      field.add(new Option(`${name}, lowest first`, `${column} 1`));
      field.add(new Option(`${name}, highest first`, `${column} -1`));
    });
    field.onchange = () => {
      [this.column, this.direction] = field.value.split(" ").map(Number);
      this.show();
    };
    label.append(field);
    this.tools.append(label);
  }

  found() {
    const words = this.words.split(/\s+/).filter(Boolean);
    const rows = words.length ? this.rows.filter((_, n) => words.every(word => this.texts[n].includes(word))) : [...this.rows];
    return this.column < 0 ? rows : rows.sort(byColumn(this.column, this.direction));
  }

  show() {
    const rows = this.found();
    this.count.textContent = rows.length === this.rows.length ? "" : `${rows.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")}`;
    this.more.hidden = rows.length <= this.n;
    this.more.textContent = `Show more (${(rows.length - this.n).toLocaleString("en")} left)`;
    const part = rows.slice(0, this.n);
    if (this.isAnswers) this.body.replaceChildren(...part.map(row => this.answer(row)));
    else this.body.replaceChildren(this.table(part));
  }

  answer(row) {
    const told = Object.fromEntries(this.columns.map((name, n) => [name, row[n]]));
    const { Variant, Prompt, Answer, ...rest } = told;
    const made = make("li", "answer");
    const head = make("p", "who", shown(Variant));
    const facts = Object.entries(rest).filter(([name, value]) => value !== null && value !== "" && name !== "Source" && name !== "Kept");
    head.append(make("span", "facts", facts.map(([name, value]) => `${name} ${shown(value)}`).join(" · ")));
    const asked = make("p", "asked", shown(Prompt));
    const text = make("p", "text", shown(Answer) || "(an empty answer)");
    asked.dir = text.dir = "auto";
    made.append(head, asked, text);
    return made;
  }

  table(rows) {
    const made = make("table");
    made.append(make("caption", "hidden", this.title));
    const head = made.createTHead().insertRow();
    this.columns.forEach((name, column) => {
      const cell = make("th");
      cell.scope = "col";
      cell.ariaSort = column !== this.column ? "none" : this.direction > 0 ? "ascending" : "descending";
      const button = make("button", "", name || "–");
      button.type = "button";
      button.onclick = () => {
        this.direction = this.column === column ? -this.direction : 1;
        this.column = column;
        this.show();
        this.body.querySelectorAll("th button")[column].focus();
      };
      cell.append(button);
      head.append(cell);
    });
    const body = made.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      for (const value of row) line.append(make("td", typeof value === "number" ? "number" : "", shown(value)));
    }
    return made;
  }
}

// Files of what is in the page

/** Numbers in full; a text that a spreadsheet would take for a formula begins with an apostrophe. */
function csv({ columns, rows }) {
  const inert = value => (typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value);
  const quoted = value => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const cell = value => (value === null ? "" : quoted(inert(value)));
  return [columns, ...rows].map(row => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, content) {
  const link = make("a");
  link.download = name;
  link.href = content instanceof Blob ? URL.createObjectURL(content) : content;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A row a token: place, id, text, role, values. */
function tokenTable({ title, drawing }) {
  const { ids, sizes, texts, roles, panels } = drawing;
  const names = { s: "special", t: "template", c: "content" };
  const boxes = sizes.flatMap((size, box) => Array(size).fill(box));
  const rows = boxes.map((box, place) => [place, ids[place], texts[box], names[roles[box]], ...panels.map(panel => panel.values[place])]);
  return { title, columns: ["Position", "Id", "Text", "Role", ...panels.map(panel => panel.title)], rows };
}

// Charts

/** What a pointer is on, in words. */
function tell(_, event, item, value) {
  const tip = document.getElementById("hint");
  tip.hidden = value === null || value === undefined || value === "";
  if (tip.hidden) return;
  const table = make("table");
  for (const [name, text] of typeof value === "object" ? Object.entries(value) : [["", value]]) {
    const row = table.insertRow();
    row.append(make("th", "", name), make("td", "", shown(text)));
  }
  tip.replaceChildren(table);
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, event.clientY + 14 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 14)}px`;
}

class Chart {
  constructor(place, item) {
    Object.assign(this, { place, item, room: "" });
    this.inside = make("div", "canvas");
    place.replaceChildren(this.inside);
  }

  /** Over the whole width; in a presentation in the shape of the room that there is, which it is then scaled to. */
  async draw() {
    const [wide, high] = [this.place.clientWidth, isPresenting() ? this.place.clientHeight : 0];
    if (wide < 50 || this.room === `${wide} ${high}`) return;
    this.room = `${wide} ${high}`;
    try {
      const size = await this.fit(high ? SCREEN : wide);
      if (high) await this.fit(Math.max(SCREEN, Math.min(SCREEN * 1.8, (size.height * wide) / high)));
    } catch {
      this.place.replaceChildren(make("p", "fault", "This picture cannot be drawn; its numbers are below."));
    }
  }

  /** Draw so wide; its size. What the axes of stacked charts take is known when they have been drawn. */
  async fit(width) {
    let size = await this.embed(width, 0);
    if (this.item.drawing.vconcat) size = await this.embed(width, size.width - width);
    return size;
  }

  async embed(width, taken) {
    const { vconcat, hconcat, concat, facet, repeat } = this.item.drawing;
    const over = vconcat
      ? { vconcat: vconcat.map(part => ({ ...part, width: Math.max(80, width - taken) })), autosize: "pad" }
      : hconcat || concat || facet || repeat ? {} : { width, autosize: { type: "fit-x", contains: "padding" } };
    const options = { mode: "vega-lite", actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: tell, config: DATA.config, logLevel: 0 };
    this.view?.finalize();
    this.view = (await vegaEmbed(this.inside, { ...this.item.drawing, ...over }, options)).view;
    const { width: w, height: h } = this.inside.querySelector("svg").viewBox.baseVal;
    return { width: w, height: h };
  }

  /** On white, whatever the page's colours. */
  async save(kind) {
    const name = fileName(this.item.title, kind);
    this.view.background("#ffffff");
    if (kind === "svg") save(name, new Blob([await this.view.toSVG()], { type: "image/svg+xml" }));
    else save(name, await this.view.toImageURL("png", 3));
    this.view.background(null);
  }
}

const fileName = (title, ending) => `${title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60).replace(/^-|-$/g, "") || "numbers"}.${ending}`;

// The page

const charts = [];
const tokens = [];

/** Tokens in a shadow root, so that the page's style and theirs do not meet. */
function tokenView(place, drawing) {
  const root = place.attachShadow({ mode: "open" });
  const style = new CSSStyleSheet();
  style.replaceSync(TOKEN_STYLE);
  root.adoptedStyleSheets = [style];
  const data = { pin: null, ...drawing };
  const draw = () => drawTokens({ data, parentElement: root, setStateValue: (_, click) => (data.pin = click.place) });
  tokens.push(draw);
  draw();
}

function fill(section) {
  const finding = DATA.findings[section.closest("article").dataset.finding];
  const number = section.dataset.item;
  const item = number === "answers" ? finding.answers : finding.items[number];
  const kind = section.dataset.kind;
  const rows = () => (kind === "tokens" ? tokenTable(item) : item);
  const picture = section.querySelector(".picture");
  if (picture) charts.push((section.chart = new Chart(picture, item)));
  if (kind === "tokens") {
    try {
      tokenView(section.querySelector(".tokens"), item.drawing);
    } catch {
      section.querySelector(".tokens").replaceWith(make("p", "fault", "These tokens cannot be drawn."));
    }
  }
  const numbers = section.querySelector(".numbers");
  const list = section.querySelector(".list");
  if (numbers) numbers.ontoggle = () => numbers.open && !list.firstChild && new Rows(list, rows(), false);
  else new Rows(list, item, kind === "answers" && item.columns.includes("Answer"));
  for (const button of section.querySelectorAll("[data-save]"))
    button.onclick = () =>
      button.dataset.save === "csv" ? save(fileName(item.title, "csv"), new Blob([csv(rows())], { type: "text/csv" })) : section.chart.save(button.dataset.save);
}

async function drawCharts() {
  for (const chart of charts) await chart.draw();
  document.body.dataset.drawn = charts.length;
}

const theme = document.getElementById("theme");
const remembered = { get: () => { try { return localStorage.theme ?? ""; } catch { return ""; } }, set: value => { try { localStorage.theme = value; } catch { /* not kept */ } } };

function paint(value) {
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  theme.value = value;
  for (const draw of tokens) draw();
}

// Presentation: a screen at a time

const isPresenting = () => document.body.classList.contains("presenting");
const slides = [...document.querySelectorAll("[data-slide]")];
const turns = document.querySelector(".turn");
let at = -1;

function present(number) {
  const isOn = number >= 0;
  slides[at]?.classList.remove("current");
  at = isOn ? Math.min(number, slides.length - 1) : -1;
  document.body.classList.toggle("presenting", isOn);
  turns.hidden = !isOn;
  if (isOn) {
    slides[at].classList.add("current");
    for (const article of document.querySelectorAll("article")) article.classList.toggle("current", article.contains(slides[at]));
    document.getElementById("at").textContent = `${at + 1} of ${slides.length}`;
    scrollTo(0, 0);
  }
  drawCharts();
}

/** The slide that is in sight, or the first. */
const inSight = () => scrollY < innerHeight / 4 ? 0 : Math.max(0, slides.findIndex(slide => slide.getBoundingClientRect().bottom > innerHeight / 3));

function leave() {
  const slide = slides[at];
  present(-1);
  if (document.fullscreenElement) document.exitFullscreen();
  slide?.scrollIntoView();
}

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
  const step = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 }[event.key];
  if (at < 0) return void (event.key === "p" && present(inSight()));
  if (event.key === "Escape") leave();
  else if (event.key === "Home" || event.key === "End") present(event.key === "Home" ? 0 : slides.length - 1);
  else if (step && !(event.key === " " && event.target.closest?.("button, summary, a"))) present(Math.max(0, at + step));
  else return;
  event.preventDefault();
}

for (const section of document.querySelectorAll(".item")) fill(section);
theme.onchange = () => (remembered.set(theme.value), paint(theme.value));
paint(remembered.get());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(theme.value));
if (turns) {
  document.getElementById("present").onclick = () => {
    present(inSight());
    document.documentElement.requestFullscreen?.().catch(() => {}); // a window will do
  };
  document.getElementById("leave").onclick = leave;
  for (const button of turns.querySelectorAll("[data-turn]")) button.onclick = () => present(Math.max(0, at + Number(button.dataset.turn)));
  document.addEventListener("keydown", onKey);
}
let waiting;
addEventListener("resize", () => (clearTimeout(waiting), (waiting = setTimeout(drawCharts, 150))));
addEventListener("beforeprint", () => {
  for (const numbers of document.querySelectorAll(".numbers")) if (numbers.dataset.n <= PRINTED) numbers.open = true;
});
drawCharts();
