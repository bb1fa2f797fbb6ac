// The API to read: every path of /openapi.json, with its fields, bounds and answers.

import { getJson } from "./api.js";
import { $, h } from "./dom.js";

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];
let components = {};

const resolved = (schema) => (schema?.$ref ? { title: schema.$ref.split("/").at(-1), ...components[schema.$ref.split("/").at(-1)] } : schema ?? {});

// -- schemas ---------------------------------------------------------------------------------------------------------

/** The type of a schema in one line. */
function typeOf(schema, depth = 0) {
  if (schema === true || schema === undefined || depth > 4) return "any";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return [...new Set(several.map((one) => typeOf(one, depth + 1)))].join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.type === "array") return `list of ${schema.items ? typeOf(schema.items, depth + 1) : "any"}`;
  if (Array.isArray(schema.type)) return schema.type.join(" | ");
  return schema.type ?? "any";
}

const BOUNDS = {
  minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<", minLength: "characters ≥", maxLength: "characters ≤",
  minItems: "items ≥", maxItems: "items ≤", pattern: "pattern", default: "default",
};

function boundsOf(schema) {
  const all = [schema, ...(schema.anyOf ?? []), ...(schema.oneOf ?? [])];
  return Object.entries(BOUNDS).flatMap(([name, sign]) =>
    all.filter((one) => one[name] !== undefined && one[name] !== null).map((one) => `${sign} ${typeof one[name] === "string" ? one[name] : typeof one[name] === "number" ? one[name].toLocaleString("en") : JSON.stringify(one[name])}`));
}

/** Objects that a schema has inside itself, by reference or not. */
function insides(schema) {
  const inner = [schema, ...(schema.anyOf ?? []), ...(schema.oneOf ?? [])].flatMap((one) => [one, one.items, one.contentSchema]).filter(Boolean);
  return inner.map(resolved).flatMap((one) => (one.items ? [one, resolved(one.items)] : [one])).filter((one) => one.properties);
}

/** Text in which ``code`` is set as such. */
const prose = (text = "") => text.split("``").map((part, i) => (i % 2 ? h("code", {}, part) : part));

function fieldsOf(schema, above = []) {
  const required = new Set(schema.required ?? []);
  return h("ul", { class: "schema" }, Object.entries(schema.properties ?? {}).map(([name, one]) => {
    const whole = { ...resolved(one), ...one };
    const inner = insides(one).filter((found, i, all) => !above.includes(found.title) && (!found.title || all.findIndex((other) => other.title === found.title) === i));
    return h("li", {},
      h("div", {}, h("code", { class: "name" }, name), " ", h("span", { class: "type" }, typeOf(one)),
        required.has(name) && h("span", { class: "required" }, " required"),
        boundsOf(one).map((bound) => h("span", { class: "bound" }, bound))),
      whole.description && h("p", {}, prose(whole.description)),
      inner.map((found) => h("details", {}, h("summary", {}, found.title ?? "fields"), fieldsOf(found, [...above, found.title]))));
  }));
}

function schemaOf(schema) {
  const whole = resolved(schema);
  const inner = insides(schema);
  if (!inner.length) return h("p", { class: "type" }, typeOf(schema), " ", boundsOf(whole).join(", "));
  return inner.map((one) => h("div", {}, one.description && h("p", {}, prose(one.description)), fieldsOf(one, [one.title])));
}

const contentOf = (content = {}) => Object.entries(content).map(([type, { schema, "x-item-schema": item }]) =>
  h("div", { class: "content" }, h("p", {}, h("code", {}, type), item ? ", the data of each event:" : ""),
    schemaOf(item?.properties.data.contentSchema ?? schema)));

// -- paths -----------------------------------------------------------------------------------------------------------

/** What an operation takes and gives, made when it is opened: all of them at once would be slow. */
function bodyOf({ description, parameters = [], requestBody, responses }) {
  const codes = Object.entries(responses);
  const good = codes.filter(([code]) => code < "300");
  const bad = codes.filter(([code]) => code >= "300");
  return [
    description && h("p", {}, prose(description)),
    parameters.length > 0 && [h("h3", {}, "Parameters"), h("ul", { class: "schema" }, parameters.map((one) => h("li", {},
      h("div", {}, h("code", { class: "name" }, one.name), " ", h("span", { class: "type" }, `${one.in}, ${typeOf(one.schema)}`),
        one.required && h("span", { class: "required" }, " required"), boundsOf(one.schema ?? {}).map((bound) => h("span", { class: "bound" }, bound))),
      one.description && h("p", {}, prose(one.description)))))],
    requestBody && [h("h3", {}, "Body"), contentOf(requestBody.content)],
    h("h3", {}, "Answer"), good.map(([code, one]) => [h("p", {}, h("code", {}, code), " ", prose(one.description)), contentOf(one.content)]),
    bad.length > 0 && h("details", {}, h("summary", {}, "Errors"), h("dl", { class: "errors" }, bad.map(([code, one]) =>
      h("div", {}, h("dt", {}, code), h("dd", {}, one.description.split(", ").flatMap((text) => [h("code", {}, text), " "])))))),
  ].flat(Infinity).filter(Boolean);
}

function operationOf(method, path, operation) {
  const place = h("div");
  const element = h("details", {
    class: "operation", id: operation.operationId, ontoggle: () => { if (!place.hasChildNodes()) place.append(...bodyOf(operation)); },
  }, h("summary", {}, h("span", { class: `method ${method}` }, method.toUpperCase()), h("code", {}, path), h("span", {}, operation.summary),
    operation.security.length === 0 && h("span", { class: "bound" }, "no key")), place);
  return { element, words: JSON.stringify([method, path, operation]).toLowerCase(), tag: operation.tags[0] };
}

function show({ info, tags, paths, components: { schemas } }) {
  components = schemas;
  $("version").textContent = info.version;
  const operations = Object.entries(paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => operationOf(method, path, item[method])));
  const sections = tags.map(({ name: tag, description }) => {
    const ones = operations.filter((one) => one.tag === tag);
    return { tag, ones, element: h("section", { "aria-label": tag }, h("h2", {}, tag), h("p", { class: "muted" }, description), ones.map((one) => one.element)) };
  });
  $("intro").replaceChildren(info.description ?? "");
  $("paths").append(...sections.map((one) => one.element));
  $("contents").replaceChildren(...sections.map(({ tag, ones, element }) => h("a", {
    href: `#${(element.id = `of-${tag.replace(/\W+/g, "-")}`)}`,
  }, tag, " ", h("small", {}, String(ones.length)))));
  const find = () => {
    const wanted = $("find-text").value.trim().toLowerCase();
    for (const { ones, element } of sections) {
      for (const one of ones) one.element.hidden = !one.words.includes(wanted);
      element.hidden = ones.every((one) => one.element.hidden);
    }
  };
  $("find-text").addEventListener("input", find);
  const opened = () => { const at = $(decodeURIComponent(location.hash.slice(1))); if (at?.tagName === "DETAILS") at.open = true; at?.scrollIntoView(); };
  addEventListener("hashchange", opened);
  opened();
}

$("find").addEventListener("submit", (event) => event.preventDefault());
getJson("openapi.json").then(show, (error) => { $("intro").textContent = `${error.message} (${error.code}${error.requestId ? `, request ${error.requestId}` : ""})`; });
