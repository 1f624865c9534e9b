// The search page. Its state is in the address, so every state can be linked to, and Back shows the previous answers.

const $ = (selector, inside = document) => inside.querySelector(selector);
const WAIT_MS = 250;                // from the last key to the start of a search
const SLOW_MS = 300;                // after which a search says that it is running
const NOTES = 3;                    // about the index; there is one for each file that cannot be read
const PHRASES = 4;                  // shown one by one; the share of the others is shown as a sum
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;
let asked = new AbortController();  // of the running search
let about = {level_weights: {}, holds: "", notes: []};     // until the server has answered
let learnt;                         // the promise of that answer

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;       // never markup: captions and file names come from others
  return element;
}

async function get(path, query, signal) {
  const answer = await fetch(`${path}?${query}`, {signal}).catch(error => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Is `hcmi serve` still running?");
  });
  const found = await answer.json().catch(() => ({error: `The server answered ${answer.status}.`}));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

const query = () => new URLSearchParams(location.search);

function ask(changes, typing = false) {
  const next = new URLSearchParams();
  for (const [name, value] of Object.entries(changes)) if (String(value).trim()) next.set(name, value);
  if (String(next) === String(query())) {
    if (typing) return;
    learnt = undefined;     // Search and Enter ask for everything again: after an error, or when videos were added
    return show();
  }
  // One entry for Back, not one for each pause in typing.
  const same = typing && (query().has("q") || next.has("like"));
  history[same ? "replaceState" : "pushState"](null, "", String(next) ? `?${next}` : location.pathname);
  show(typing);
}

const fields = [...$("#ask").elements].filter(field => field.name);

// What the form asks for. A Similar page goes on until a query is typed. A tag that is still being typed does not count.
function typed(typing = false) {
  const values = Object.fromEntries(new FormData($("#ask")));
  if (typing && !/.=./.test(values.tag)) values.tag = "";
  return values.q.trim() ? values : {...values, like: query().get("like") ?? ""};
}

function learn() {
  learnt ??= get("api/about", "").then(found => {
    about = found;
    $("#examples").replaceChildren(...about.examples.map(caption => {
      const example = make("button", "", caption);
      example.type = "button";
      example.addEventListener("click", () => ask({...typed(true), q: caption}));
      return example;
    }));
  }).catch(error => {
    learnt = undefined;
    fail(error);
  });
  return learnt;
}

function say(...texts) {
  const more = about.notes.length - NOTES;
  const notes = more > 0 ? [...about.notes.slice(0, NOTES), `and ${more} more`] : about.notes;
  $("#status").textContent = [...texts, ...notes].filter(Boolean).join(" · ");
}

async function show(typing = false) {
  asked.abort();
  asked = new AbortController();
  const {signal} = asked, now = query();
  if (!typing) for (const field of fields) field.value = now.get(field.name) ?? "";
  $("#filters").open ||= fields.some(field => $("#filters").contains(field) && now.has(field.name));
  document.title = now.get("q") ? `${now.get("q")} · HCMI` : "HCMI: search videos";
  $("#error").hidden = true;
  const empty = !now.get("q") && !now.get("like");
  $("#start").hidden = !empty;
  $("#hits").setAttribute("aria-busy", String(!empty));
  const known = learn();
  if (empty) {
    $("#hits").replaceChildren();
    await known;
    if (!signal.aborted) say(about.holds);
    return;
  }
  const slow = setTimeout(() => { if (!signal.aborted) $("#status").textContent = "Searching…"; }, SLOW_MS);
  try {
    const {hits, notes, seconds} = await get("api/search", now, signal);
    await known;
    if (signal.aborted) return;
    $("#hits").replaceChildren(...hits.map(card));
    const like = now.get("like") ? ` like ${now.get("like")}` : "";
    const count = hits.length ? `${hits.length} answer${hits.length === 1 ? "" : "s"}${like} in ${Math.max(1, Math.round(1000 * seconds))} ms`
      : "Nothing found: the index is empty, or no video passes the filters.";
    clearTimeout(slow);
    say(count, ...notes);
    if (hits.length && !STILL) $("#hits .play").click();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("#hits").replaceChildren();
    $("#status").textContent = "";
    fail(error);
  } finally {
    clearTimeout(slow);
  }
  $("#hits").setAttribute("aria-busy", "false");
}

function fail(error) {
  $("#error").textContent = error.message;
  $("#error").hidden = false;
}

function card(hit) {
  const item = $("#hit").content.cloneNode(true).firstElementChild;
  const part = name => $(name, item);
  part(".rank").textContent = hit.rank;
  part(".file").textContent = hit.file;
  part(".file").title = hit.path;
  part(".time").textContent = hit.time;
  for (const [level, value] of Object.entries(hit.levels)) {
    if (about.level_weights[level] === 0) continue;
    const entry = make("span", "", `${level.replace("_", "-")} `);
    entry.append(make("b", "", value.toFixed(2)));
    part(".levels").append(entry);
  }
  if (hit.here) {
    player(item, hit);
    further(item, hit);
  } else {
    part(".screen").replaceChildren(make("p", "", "The file of this video is not there."));
    for (const name of [".play", ".whole", ".line"]) part(name).hidden = true;
  }
  part(".why").hidden = query().has("like");
  part(".why").addEventListener("click", () => why(item, hit));
  part(".like").addEventListener("click", () => ask({...typed(true), q: "", like: hit.video_id}));
  return item;
}

// The further moments of the file: a button with the time of each, and a mark on the line.
function further(item, hit) {
  const list = $(".more", item);
  list.hidden = !hit.more.length;
  for (const moment of hit.more) {
    const button = make("button", "", moment.time);
    button.type = "button";
    button.addEventListener("click", () => item.dispatchEvent(new CustomEvent("play-moment", {detail: moment})));
    item.addEventListener("play-moment", ({detail}) => button.setAttribute("aria-pressed", String(detail === moment)));
    list.append(button);
  }
}

// Plays a moment in a loop, or the whole file; the line below shows the positions of the moments.
function player(item, hit) {
  const video = $("video", item), line = $(".line", item);
  const marks = [hit, ...hit.more].map(moment => [moment, make("span", "moment")]);
  line.prepend(...marks.map(([, mark]) => mark).reverse());
  let moment = hit, only = true;
  video.src = `video/${hit.video_id}#t=${hit.start_s}`;
  video.setAttribute("aria-label", `${hit.file}, from ${hit.start_s.toFixed(1)} seconds`);
  const go = (at, loop) => {
    only = loop;
    if (Number.isFinite(at)) video.currentTime = at;
    for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
    video.play().catch(() => {});       // refused or aborted: the first frame stays
  };
  const place = () => {
    const share = seconds => 100 * Math.min(1, seconds / video.duration);
    for (const [{start_s, end_s}, mark] of marks) {
      mark.style.left = `${share(start_s)}%`;
      mark.style.width = `${share(end_s) - share(start_s)}%`;
      mark.classList.toggle("other", start_s !== moment.start_s);
    }
    $(".now", item).style.left = `${share(video.currentTime)}%`;
    if (only && !video.paused && video.currentTime >= moment.end_s) video.currentTime = moment.start_s;
  };
  for (const event of ["loadedmetadata", "timeupdate", "seeked"]) video.addEventListener(event, place);
  video.addEventListener("ended", () => { if (only) go(moment.start_s, true); });
  video.addEventListener("click", () => { if (video.paused) go(NaN, only); else video.pause(); });
  video.addEventListener("error", () => {       // a container or codec that this browser cannot play
    const image = make("img"), draw = ({start_s, end_s}) => {
      image.src = `frame/${hit.video_id}?start_s=${start_s}&end_s=${end_s}`;
    };
    draw(moment);
    item.addEventListener("play-moment", () => draw(moment));
    image.alt = image.title = "This browser cannot play the file: the middle frame of the moment.";
    image.addEventListener("error", () => image.replaceWith(make("p", "", "This video cannot be decoded.")));
    video.replaceWith(image);
    for (const name of [".play", ".whole", ".line"]) $(name, item).hidden = true;
  });
  $(".play", item).addEventListener("click", () => item.dispatchEvent(new CustomEvent("play-moment", {detail: hit})));
  // A second click pauses, because the keyboard has no other way.
  $(".whole", item).addEventListener("click", () => only || video.paused ? go(0, false) : video.pause());
  line.addEventListener("click", event => go(event.offsetX / line.clientWidth * video.duration, false));
  item.addEventListener("play-moment", ({detail}) => {
    if (only && detail === moment && !video.paused) return video.pause();
    moment = detail;
    go(moment.start_s, true);
  });
  item.addEventListener("go-to", event => go(event.detail, false));
}

async function why(item, hit) {
  const reason = $(".reason", item), open = reason.hidden;
  reason.hidden = !open;
  item.classList.toggle("open", open);
  $(".why", item).setAttribute("aria-expanded", String(open));
  if (!open || $("table", reason)) return;
  const wanted = query();
  wanted.set("video_id", hit.video_id);
  try {
    const found = await get("api/explain", wanted);
    const counts = found.word_shares.length ? COUNTS : "";
    reason.replaceChildren(sum(hit, found), make("p", "legend", legend(found) + counts), heat(item, hit, found), rest(found));
  } catch (error) {
    reason.replaceChildren(make("p", "", error.message));
  }
}

function sum(hit, found) {
  const parts = Object.entries(hit.levels).filter(([level]) => found.level_weights[level] !== 0)
    .map(([level, value]) => `${found.level_weights[level]} × ${level.replace("_", "-")} ${value.toFixed(2)}`);
  return make("p", "", `Score ${hit.score.toFixed(2)} = ${parts.join(" + ")}`);
}

// A model that compares sentences alone has no words: its only row is the query.
const whole = found => found.words.length === 1 && found.words[0] === found.query && !found.word_shares.length;
const matches = found => `How well each frame matches ${whole(found) ? "the query" : "each word"}`;
const legend = found => `${matches(found)} (cosine). The times of the moment are orange; click a time to play from there. The best `
  + `frame of ${whole(found) ? "the query" : "each word"} has a border.`
  + (found.baseline ? " The last row: standard deviations above other videos." : "");
const COUNTS = " A word's share of the score is what it adds in that frame. When the query tells a whole video, the frames whose "
  + "best word it is add to the share too.";

// Rows are words, columns are frames. The last row is the whole query: its frames are compared with other videos, where there
// are enough of them.
function heat(item, hit, found) {
  const table = make("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  table.ariaLabel = matches(found);
  head.insertCell();
  found.times_s.forEach((time, at) => {
    const cell = make("th", time >= hit.start_s && time <= hit.end_s ? "in" : ""), button = make("button", "", found.times[at]);
    button.type = "button";
    button.addEventListener("click", () => item.dispatchEvent(new CustomEvent("go-to", {detail: time})));
    cell.append(button);
    head.append(cell);
  });
  const shares = found.word_shares, total = numbers => numbers.reduce((sum, value) => sum + value, 0);
  for (const name of shares.length ? ["weight", "share"] : ["weight"]) head.append(make("th", "", name));
  const line = (name, values, amounts, strength = 1, best = -1) => {
    const row = body.insertRow(), label = make("th", "", name);
    label.scope = "row";
    label.style.opacity = .7 + .3 * strength;       // a paler one would be hard to read
    row.append(label);
    values.forEach((value, at) => {
      const cell = row.insertCell(), heat = Math.min(1, Math.max(0, value));     // a fixed scale: noise stays pale
      cell.textContent = value.toFixed(2);
      cell.style.background = `rgb(var(--heat) / ${heat.toFixed(3)})`;
      cell.classList.toggle("best", at === best);
    });
    for (const value of amounts) row.append(make("td", "amount", value.toFixed(2)));
    return row;
  };
  const most = Math.max(...found.word_weights);
  const amounts = [found.word_weights, shares].filter(numbers => numbers.length);
  found.words.forEach((word, at) => line(whole(found) ? "the query" : word, found.frame_word.map(row => row[at]), amounts.map(numbers => numbers[at]),
                                         found.word_weights[at] / most, found.word_frames[at]));
  if (found.baseline || !whole(found))
    line(found.baseline ? "above others" : "all words", found.relevance, amounts.map(total)).className = "together";
  return table;
}

// What else the score is made of, besides the words and the whole video.
function rest(found) {
  const list = make("ul", "rest"), add = (...texts) => list.appendChild(make("li")).append(...texts);
  const two = value => value.toFixed(2);
  if (Math.abs(found.marks_share) >= .005) add(`the marks at the start and the end of the text: share ${two(found.marks_share)}`);
  for (const match of found.phrases.slice(0, PHRASES))
    add("phrase ", make("b", "", match.words.join(" … ")), ` matches clip ${match.clip + 1} best, at ${match.time}: `
        + `cosine ${two(match.cosine)}, weight ${two(match.weight)}, share ${two(match.share)}`);
  const others = found.phrases.slice(PHRASES);
  if (others.length) add(`${others.length} more phrases: share ${two(others.reduce((sum, match) => sum + match.share, 0))}`);
  return list;
}

let timer;
$("#ask").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => ask(typed(true), true), WAIT_MS);
});
$("#ask").addEventListener("submit", event => {
  event.preventDefault();
  clearTimeout(timer);
  ask(typed());
});
addEventListener("popstate", () => show());
addEventListener("keydown", event => {
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) {
    event.preventDefault();
    $("#q").select();
  }
});

if ($("#q").value && !query().has("q")) ask(typed(true), true);     // typed before this script was loaded
else show();
