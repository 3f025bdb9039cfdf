"use strict";

// The numbers that the page shows: pure functions.

/** PRIOR's weights k·w/Σw of one caption, w = (1 − p_r)^α, in the float32 steps of prior/weighting.py. */
function weights(logprob, alpha) {
  const w = surprise(logprob, alpha);
  const total = w.reduce((sum, value) => sum + value, 0);
  const tiny = 1.1754943508222875e-38;
  return total > 0 ? w.map((value) => (w.length * value) / Math.max(total, tiny)) : w.map(() => 1);
}

/** (1 − p_r)^α of every token. */
function surprise(logprob, alpha) {
  const clamp = (value) => Math.min(Math.max(value, 0), 1);
  return logprob.map((value) => Math.fround(Math.fround(clamp(-Math.expm1(value))) ** alpha));
}

/** The share of the weight that would have to move to lie evenly on the tokens that the picture decides; or null. */
function disagreement(weight, truth) {
  const decided = truth.filter((value) => value === 1).length;
  if (!decided || truth.includes(null)) return null;
  const gap = weight.map((value, at) => Math.abs(value / weight.length - truth[at] / decided));
  return gap.reduce((sum, value) => sum + value, 0) / 2;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// Colours: lightness alone tells the order, and black or white text always stands out by 4.5 to 1 or more.

const BLUES = ["#ffffff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b"];
const ORANGES = ["#ffffff", "#feedde", "#fdd0a2", "#fdae6b", "#f16913", "#d94801", "#8c2d04", "#6b2203"];

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function ramp(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [channels(stops[low]), channels(stops[low + 1])];
  return from.map((value, at) => Math.round(value + (to[at] - value) * (place - low)));
}

function ink([red, green, blue]) {
  const linear = [red, green, blue].map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) ? "#000" : "#fff";
}

const MODES = {
  weight: {
    ticks: [0, 0.5, 1, 1.5, 2, 2.5, 3],
    colour: (value) => ramp(BLUES, value / 3),
    label: (value) => (value === 3 ? "≥ 3" : String(value)),
    meaning: () => "weight k·w/Σw in PRIOR’s loss; 1 is next-token prediction",
  },
  p: {
    ticks: [0, 0.25, 0.5, 0.75, 1],
    colour: (value) => ramp(BLUES, value),
    label: String,
    meaning: () => "pᵣ, the reference LLM’s probability of the token, without the picture",
  },
  truth: {
    ticks: [0, 1],
    colour: (value) => ramp(BLUES, value === 1 ? 0.85 : 0),
    label: (value) => (value ? "decided" : "not decided"),
    meaning: () => "whether the picture decides the token (bold), by the corpus’s own account",
  },
  mi: {
    ticks: [-4, -2, -1, 0, 1, 2, 4],
    colour: (value) => ramp(value < 0 ? ORANGES : BLUES, Math.sqrt(Math.abs(value) / 4)),
    label: (value) => (value === 4 ? "≥ 4" : value === -4 ? "≤ −4" : String(value).replace("-", "−")),
    meaning: () => `log p(t | picture) − log p(t) in nats, of ${named("archs")} trained by ${named("objectives")}`,
  },
};

// The page.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { mode: "weight", alpha: 1, arch: data.archs[0].key, objective: data.objectives.at(-1).key };
let current = null;

function named(what) {
  const key = what === "archs" ? state.arch : state.objective;
  return data[what].find((entry) => entry.key === key).name;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const fixed = (value, digits = 2) => (Number(value.toFixed(digits)) || 0).toFixed(digits).replace("-", "−");
const signed = (value, digits = 2) => (Number(value.toFixed(digits)) > 0 ? "+" : "") + fixed(value, digits);
const percent = (share) => `${Math.round(100 * share)} %`;

const cards = data.cards.map((entry, order) => {
  const card = { entry, order, tokens: [], weights: null };
  card.text = [entry.id, entry.caption ?? "", ...entry.questions.map((asked) => asked.text)].join("\n").toLowerCase();
  const caption = element("p", { class: "caption" });
  if (entry.tokens) {
    entry.tokens.text.forEach((text, at) => {
      const truth = entry.tokens.truth[at];
      const kind = truth === 1 ? "decided" : truth === null ? "unknown" : "";
      const shown = text === null ? "end" : text || "▫";
      // A space before a word is the token's own, but as a part of the box it would hang over at the end of a line.
      const word = shown.trimStart() || shown;
      if (word !== shown) caption.append(" ");
      const token = element("span", { class: `token ${kind} ${text === null ? "end" : ""}`, tabindex: "-1" }, word);
      token.dataset.at = at;
      card.tokens.push(token);
      caption.append(token);
    });
  } else {
    caption.classList.add("plain");
    caption.append(entry.caption ?? "The caption of this picture is not stored.");
  }
  card.facts = element("p", { class: "facts" });
  card.questions = element("ol", { class: "questions", "aria-label": "Questions about this picture" });
  const image = element("img", { src: entry.image, alt: `picture ${entry.id}`, class: entry.side <= 96 ? "small" : "" });
  card.node = element(
    "article",
    { class: "card", tabindex: "-1", "aria-label": `Picture ${entry.id}` },
    element("div", { class: "picture" }, image, element("h2", {}, entry.id)),
    element("div", {}, caption, card.facts),
    card.questions,
  );
  card.node.dataset.order = order;
  return card;
});

/** The numbers of a card that depend on α and the model. */
function measure(card) {
  const { tokens } = card.entry;
  if (!tokens) return;
  card.weights = weights(tokens.logprob, state.alpha);
  const w = surprise(tokens.logprob, state.alpha);
  card.mean = sum(w) / w.length;
  card.gap = disagreement(card.weights, tokens.truth);
  card.mi = tokens.mi[state.arch]?.[state.objective] ?? null;
  card.total = card.mi && sum(card.mi);
}

function values(card) {
  const { tokens } = card.entry;
  if (state.mode === "weight") return card.weights;
  if (state.mode === "p") return tokens.logprob.map(Math.exp);
  return state.mode === "truth" ? tokens.truth : card.mi;
}

function paint(card) {
  if (!card.entry.tokens) {
    card.facts.textContent = card.entry.caption ? "not scored: a picture that only benchmarks use" : "";
    return;
  }
  const shown = values(card);
  card.tokens.forEach((token, at) => {
    const value = shown ? shown[at] : null;
    const colour = value === null ? [255, 255, 255] : MODES[state.mode].colour(value);
    token.style.backgroundColor = `rgb(${colour.join(",")})`;
    token.style.color = ink(colour);
    token.classList.toggle("less", state.mode === "mi" && value !== null && value < -0.05);
    token.dataset.weight = card.weights[at];
  });
  const { truth } = card.entry.tokens;
  const facts = [["", `${truth.length} tokens`]];
  if (!truth.includes(null)) {
    const on = sum(card.weights.filter((_, at) => truth[at])) / truth.length;
    facts.push([percent(on), `of the weight on the ${percent(sum(truth) / truth.length)} that the picture decides`]);
  }
  if (card.gap !== null) facts.push([fixed(card.gap), "disagreement"]);
  facts.push([fixed(card.mean), "mean w"]);
  if (card.mi) facts.push([signed(card.total, 1), "nats MI"]);
  card.facts.replaceChildren(
    ...facts.flatMap(([number, words], at) => [at ? " · " : "", element("b", {}, number), number ? " " : "", words]),
  );
}

// Options of more characters than this are folded away, and replies that repeat one are told by its letter.
const LONG = 40;

function options(asked) {
  const letters = Object.entries(asked.options);
  if (!letters.length) return element("p", {}, asked.kind === "caption" ? "There: " : "Answer: ", element("b", {}, asked.answer));
  const list = element("ul", { class: "options" });
  for (const [letter, text] of letters) {
    const right = letter === asked.answer;
    list.append(element("li", right ? { class: "answer" } : {}, `${letter} ${text}${right ? " ✓" : ""}`));
  }
  if (letters.every(([, text]) => text.length <= LONG)) return list;
  const summary = element("summary", {}, `${letters.length} options; right: `, element("b", {}, asked.answer));
  return element("details", { class: "long" }, summary, list);
}

/** What a reply was taken for, where its words do not say so. */
function reading(asked, reply) {
  if (asked.kind === "caption") return reply.read ? ` (not there: ${reply.read})` : "";
  if (!reply.read) return Object.keys(asked.options).length ? " (none of the options)" : " (neither yes nor no)";
  const said = asked.options[reply.read] ?? reply.read;
  return reply.text.endsWith(said) || reply.text === reply.read ? "" : ` (read as ${reply.read})`;
}

function answer(asked, objective) {
  const reply = asked.replies[state.arch]?.[objective.key];
  if (!reply) return null;
  const said = asked.options[reply.read] === reply.text && reply.text.length > LONG ? reply.read : reply.text;
  return element(
    "p",
    { class: `reply ${reply.correct ? "right" : "wrong"}` },
    element("span", { class: "mark", role: "img", "aria-label": reply.correct ? "right" : "wrong" }, reply.correct ? "✓" : "✗"),
    element("span", { class: "who" }, objective.name),
    element("span", {}, said || "(nothing)", element("span", { class: "read" }, reading(asked, reply))),
  );
}

function showQuestions(card) {
  const rows = card.entry.questions.map((asked) => {
    const answers = data.objectives.map((objective) => answer(asked, objective));
    return element(
      "li",
      {},
      element("p", { class: "source" }, asked.benchmark + (asked.category ? ` · ${asked.category.replaceAll("_", " ")}` : "")),
      element("p", {}, asked.text),
      options(asked),
      ...(answers.some(Boolean) ? answers : [element("p", { class: "none" }, "No reply is stored.")]),
    );
  });
  card.questions.replaceChildren(...rows);
}

// Sorting and filtering.

function passes(card) {
  const replies = card.entry.questions.map((asked) => Object.values(asked.replies[state.arch] ?? {}));
  const wrong = (own) => own.some((reply) => !reply.correct);
  const answers = {
    all: () => true,
    asked: () => replies.length > 0,
    wrong: () => replies.some(wrong),
    differ: () => replies.some((own) => wrong(own) && own.some((reply) => reply.correct)),
  };
  const words = $("search").value.trim().toLowerCase();
  const kind = $("kinds").value;
  const found = kind === "all" || (card.entry.tokens?.kind ?? []).includes(kind);
  return found && answers[$("answers").value]() && card.text.includes(words);
}

/** Largest first; what has no such number comes last, in the corpus's order. */
function ranked() {
  const key = { disagreement: "gap", mean: "mean", mi: "total" }[$("sort").value];
  const value = (card) => (key ? (card[key] ?? -Infinity) : 0);
  return [...cards].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    return a === b ? one.order - other.order : b - a;
  });
}

function arrange() {
  const focused = document.activeElement;
  const order = ranked();
  for (const card of cards) card.node.hidden = !passes(card);
  // Moving a node takes its focus away, so nothing is moved that lies right already.
  if (order.some((card, at) => $("cards").children[at] !== card.node)) {
    $("cards").append(...order.map((card) => card.node));
    if (focused?.closest?.(".card")) focused.focus({ preventScroll: true });
  }
  const visible = order.filter((card) => !card.node.hidden);
  if (!visible.includes(current)) current = null;
  for (const card of cards) card.node.tabIndex = card === (current ?? visible[0]) ? 0 : -1;
  $("none").hidden = visible.length > 0;
  summarise(visible);
}

function summarise(visible) {
  const parts = [`${visible.length} of ${cards.length} pictures`];
  const known = visible.filter((card) => card.entry.tokens && !card.entry.tokens.truth.includes(null));
  if (known.length) {
    const truth = known.flatMap((card) => card.entry.tokens.truth);
    const weight = known.flatMap((card) => card.weights);
    const on = sum(weight.filter((_, at) => truth[at])) / sum(weight);
    const share = percent(sum(truth) / truth.length);
    parts.push(`the picture decides ${share} of their tokens, which get ${percent(on)} of the weight at α = ${fixed(state.alpha, 1)}`);
  }
  const wins = data.objectives.map(({ key, name }) => {
    const replies = visible.flatMap((card) => card.entry.questions.flatMap((asked) => asked.replies[state.arch]?.[key] ?? []));
    return replies.length ? `${name} ${replies.filter((reply) => reply.correct).length} of ${replies.length}` : null;
  });
  if (wins.some(Boolean)) parts.push(`right replies of ${named("archs")}: ${wins.filter(Boolean).join(", ")}`);
  $("summary").textContent = parts.join("; ");
}

// Drawing anew what a change touches.

function legend() {
  const mode = MODES[state.mode];
  const swatches = mode.ticks.map((tick) => {
    const colour = mode.colour(tick);
    const swatch = element("span", {}, mode.label(tick));
    swatch.style.backgroundColor = `rgb(${colour.join(",")})`;
    swatch.style.color = ink(colour);
    return swatch;
  });
  $("scale").replaceChildren(
    element("span", { class: "swatches" }, ...swatches),
    element("span", { class: "meaning" }, `${mode.meaning()}; underlined: the picture decides it`),
  );
  $("cards").className = state.mode;
  $("objectives").hidden = state.mode !== "mi" && $("sort").value !== "mi";
}

function draw() {
  legend();
  for (const card of cards) {
    measure(card);
    paint(card);
  }
  // What the colours take up of the window decides where a card may stop under them.
  document.documentElement.style.setProperty("--bar", `${$("bar").offsetHeight}px`);
}

function drawAll() {
  draw();
  cards.forEach(showQuestions);
  arrange();
  tell();
}

function setAlpha(value) {
  state.alpha = Math.round(10 * Math.min(Math.max(value, 0), 4)) / 10;
  $("alpha").value = state.alpha;
  $("alpha-value").textContent = fixed(state.alpha, 1);
  draw();
  summarise(ranked().filter((card) => !card.node.hidden));
  tell();
}

function choose(name, value) {
  state[name] = value;
  document.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
  drawAll();
}

// The exact numbers of one token.

let told = null;

function tell(token = told) {
  told = token;
  if (!token) return;
  const card = cards[token.closest(".card").dataset.order];
  const at = Number(token.dataset.at);
  const { text, logprob, truth, kind, mi } = card.entry.tokens;
  const said = text[at] === null ? "end of caption" : `“${text[at].trim() || text[at]}”`;
  const decided = { 1: "decided by the picture", 0: "not decided by the picture" }[truth[at]] ?? "not known whether the picture decides it";
  const gains = data.objectives
    .filter(({ key }) => mi[state.arch]?.[key])
    .map(({ key, name }) => `${name} ${signed(mi[state.arch][key][at])}`);
  const parts = [
    decided + (kind?.[at] ? ` (${kind[at]} word)` : ""),
    `pᵣ ${Math.exp(logprob[at]).toPrecision(3)}`,
    `w ${surprise([logprob[at]], state.alpha)[0].toPrecision(3)}`,
    `weight k·w/Σw ${fixed(card.weights[at], 3)}`,
    ...(gains.length ? [`MI ${named("archs")}: ${gains.join(", ")}`] : []),
  ];
  $("status").replaceChildren(
    element("b", {}, said),
    ...parts.flatMap((part, index) => [index ? " · " : " ", element("span", {}, part)]),
  );
}

// Moving about.

function go(card) {
  if (!card) return;
  current = card;
  for (const other of cards) other.node.tabIndex = other === card ? 0 : -1;
  card.node.focus({ preventScroll: true });
  // A card that does not fit between colours and status line begins at the top.
  const fits = card.node.offsetHeight < innerHeight - $("bar").offsetHeight - 80;
  card.node.scrollIntoView({ block: fits ? "nearest" : "start" });
}

function step(by) {
  const visible = ranked().filter((card) => !card.node.hidden);
  const at = visible.indexOf(current);
  go(at < 0 ? visible[0] : visible[Math.min(Math.max(at + by, 0), visible.length - 1)]);
}

function stepToken(by) {
  if (!current?.tokens.length) return;
  const at = current.tokens.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : current.tokens.length - 1) : at + by;
  current.tokens[Math.min(Math.max(next, 0), current.tokens.length - 1)].focus();
}

const onCard = () => document.activeElement?.closest(".card") !== null;
const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  ArrowDown: () => onCard() && (step(1), true),
  ArrowUp: () => onCard() && (step(-1), true),
  ArrowRight: () => onCard() && (stepToken(1), true),
  ArrowLeft: () => onCard() && (stepToken(-1), true),
  "]": () => (setAlpha(state.alpha + 0.1), arrange()),
  "[": () => (setAlpha(state.alpha - 0.1), arrange()),
  1: () => choose("mode", "weight"),
  2: () => choose("mode", "p"),
  3: () => choose("mode", "truth"),
  4: () => choose("mode", "mi"),
  a: () => {
    const at = data.archs.findIndex((arch) => arch.key === state.arch);
    choose("arch", data.archs[(at + 1) % data.archs.length].key);
  },
  "/": () => $("search").focus(),
  "?": () => ($("keys").open ? $("keys").close() : $("keys").showModal()),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search]");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
  if ($("keys").open && event.key !== "?") return;
  // Sliders and menus keep the keys that move them.
  if (event.target.matches("select") && /^[a-z0-9]$/.test(event.key)) return;
  if (KEYS[event.key]() !== false) event.preventDefault();
});

$("alpha").addEventListener("input", () => setAlpha(Number($("alpha").value)));
// Cards change places once the slider rests.
$("alpha").addEventListener("change", arrange);
for (const name of ["mode", "arch", "objective"]) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
    input.addEventListener("change", () => choose(name, input.value));
  }
}
for (const id of ["sort", "answers", "kinds"]) $(id).addEventListener("change", drawAll);
$("search").addEventListener("input", arrange);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("help").addEventListener("click", KEYS["?"]);
$("reset").addEventListener("click", () => ($("filters").reset(), drawAll()));
$("cards").addEventListener("focusin", (event) => {
  current = cards[event.target.closest(".card").dataset.order];
  for (const card of cards) card.node.tabIndex = card === current ? 0 : -1;
  if (event.target.matches(".token")) tell(event.target);
});
$("cards").addEventListener("pointerover", (event) => event.target.matches(".token") && tell(event.target));
addEventListener("resize", draw);

$("kinds-label").hidden = !cards.some((card) => card.entry.tokens?.kind);
$("archs").hidden = data.archs.length < 2;
// A browser that comes back to the page keeps what its form held.
$("filters").reset();
setAlpha(1);
choose("mode", state.mode);
