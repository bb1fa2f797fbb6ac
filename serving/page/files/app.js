// The page: who is asking, what is served, and a panel for each task of which something is.

import { getJson, hasKey, send, setKey } from "./api.js";
import { watchBudget } from "./budget.js";
import { chatPanel } from "./chat.js";
import { classifyPanel } from "./classify.js";
import { $, h, newId, table } from "./dom.js";
import { failure, field, select } from "./form.js";
import { imagesPanel } from "./images.js";
import { watchLoad } from "./load.js";
import { videosPanel } from "./videos.js";

const TASKS = [
  { name: "chat", title: "Chat", panel: chatPanel },
  { name: "classify", title: "Classify", panel: classifyPanel },
  { name: "videos", title: "Videos", panel: videosPanel },
  { name: "images", title: "Images", panel: imagesPanel },
];

// -- key -------------------------------------------------------------------------------------------------------------

function tell(text) {
  $("key-note").textContent = text;
  $("key-note").hidden = text === "";
}

document.addEventListener("vireo:key", ({ detail }) => {
  tell(`${detail.message} (${detail.code}${detail.requestId ? `, request ${detail.requestId}` : ""})`);
  $("key-text").focus();
});

$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey($("key-text").value);
  $("key-text").value = "";
  tell("");
  lookAtBudget();
  await start();
  lookAtLoad();
  if (hasKey() && $("key-note").hidden) {
    $("key-text").placeholder = "in use";
    $("try").focus();
  }
});

// -- what is served --------------------------------------------------------------------------------------------------

function points({ operating_points: all, calibrated }) {
  if (!all.length) return "–";
  return h("details", {}, h("summary", {}, `${all.length}${calibrated ? "" : ", not calibrated"}`),
    h("ul", { class: "points" }, all.map((point) => h("li", {}, h("code", {}, point.replaceAll(",", " "))))));
}

function modelRow({ id, vireo }) {
  const { inputs, outputs } = vireo.io;
  return [
    h("code", {}, id), vireo.tasks.join(", "), `${inputs.join(", ")} → ${outputs.join(", ")}`, vireo.family, points(vireo), vireo.licence,
    h("span", { class: vireo.ready ? "ready" : "away" }, vireo.ready ? "ready" : "not ready"),
  ];
}

function showModels(models) {
  const heads = ["Model", "Tasks", "Takes → gives", "Family", "Operating points", "Licence", "State"];
  $("models-list").replaceChildren(table("Served models", heads, models.map(modelRow)));
}

// -- tasks -----------------------------------------------------------------------------------------------------------

/** A task: which of its models, and its panel for that model. */
function taskPanel(task, models) {
  const place = h("div");
  const choice = select(models.map((model) => model.id));
  const show = () => place.replaceChildren(task.panel(models.find((model) => model.id === choice.value)));
  choice.addEventListener("change", show);
  show();
  return [models.length > 1 ? field("Model", choice) : h("p", { class: "muted" }, "Model ", h("code", {}, models[0].id)), place];
}

function showTasks(models) {
  const served = TASKS.map((task) => [task, models.filter((model) => model.vireo.tasks.includes(task.name))]).filter(([, able]) => able.length);
  const tabs = served.map(([task]) => h("button", { role: "tab", id: newId("tab"), type: "button" }, task.title));
  const panels = served.map(([task, able], i) =>
    h("div", { role: "tabpanel", id: newId("panel"), "aria-labelledby": tabs[i].id, class: `panel ${task.name}` }, taskPanel(task, able)));
  const choose = (chosen) => {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === chosen));
      tab.tabIndex = i === chosen ? 0 : -1;
      panels[i].hidden = i !== chosen;
    });
  };
  tabs.forEach((tab, i) => {
    tab.setAttribute("aria-controls", panels[i].id);
    tab.addEventListener("click", () => choose(i));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = (to + tabs.length) % tabs.length;
      choose(next);
      tabs[next].focus();
    });
  });
  $("tabs").replaceChildren(...tabs);
  $("panels").replaceChildren(...(tabs.length ? panels : [h("p", { class: "muted" }, "There is no form here for any of the served models; see the API docs.")]));
  if (tabs.length) choose(0);
}

// -- start -----------------------------------------------------------------------------------------------------------

let served = "";

async function start() {
  try {
    const { data } = await getJson("v1/models");
    showModels(data);
    const ids = data.map((model) => model.id).join();
    if (ids !== served) showTasks(data); // what was typed stays where nothing has changed
    served = ids;
  } catch (error) {
    if (error.status !== 401) $("models-list").replaceChildren(failure(error));
    else $("models-list").replaceChildren(h("p", { class: "muted" }, "Enter an API key to see what is served."));
    served = "";
    $("tabs").replaceChildren();
    $("panels").replaceChildren();
  }
}

async function showState() {
  const state = $("state");
  let text = "Ready", kind = "ready";
  try {
    await send("healthz");
  } catch (error) {
    [text, kind] = [error.code === "unreachable" ? "Unreachable" : "Not ready", "away"];
  }
  if (state.textContent !== text) state.replaceChildren(text);
  state.className = `state ${kind}`;
  setTimeout(showState, 10_000);
}

const lookAtLoad = watchLoad();
const lookAtBudget = watchBudget();
start();
showState();
getJson("./", { headers: { accept: "application/json" } }).then(({ version }) => { $("version").textContent = version; }, () => {});
