"use strict";
// Draws /openapi.json, and sends requests to the server that the page is from. Nothing is asked of any other host, and no text of
// the document is ever taken for markup.

const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

let api;

const resolve = (schema) => {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? api.components.schemas[name] : schema || {};
};

// A short name for what a schema takes.
const kind = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf || schema.oneOf) return (schema.anyOf || schema.oneOf).map(kind).join(" or ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.type === "array") return `${kind(schema.items)}[]`;
  const limits = [
    schema.minimum !== undefined ? `from ${schema.minimum}` : "",
    schema.maximum !== undefined ? `to ${schema.maximum}` : "",
  ].filter(Boolean);
  return [[].concat(schema.type || "anything").join(" or "), ...limits].join(" ");
};

const row = (...cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));

const table = (heads, rows) =>
  make("table", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head))), ...rows);

// The members of an object, with those of objects in it on demand.
const members = (schema, depth = 0) => {
  const object = resolve(schema);
  if (object.type === "array") return members(object.items, depth);
  const choices = object.anyOf || object.oneOf;
  if (choices) return make("div", {}, ...choices.map((choice) => members(choice, depth)).filter(Boolean));
  if (!object.properties || depth > 5) return null;
  const rows = Object.entries(object.properties).map(([name, member]) => {
    const inner = members(member, depth + 1);
    const required = (object.required || []).includes(name);
    const more = inner && make("details", {}, make("summary", {}, "members"), inner);
    return row(
      make("code", {}, name),
      make("code", {}, kind(member)),
      make("div", {}, [required ? "" : "optional", member.description || ""].filter(Boolean).join(" · "), more),
    );
  });
  return table(["member", "type", ""], rows);
};

const curl = (method, path, operation) => {
  const url = `${location.origin}${path.replace("{version}", "1").replace(/\{\w+\}/, "ghostnetv2-cifar10")}`;
  if (!operation.requestBody) return `curl '${url}'`;
  if (operation.tags[0] === "images") return `curl --data-binary @photo.jpg -H 'content-type: image/jpeg' '${url}'`;
  return `curl -X ${method.toUpperCase()} -H 'content-type: application/json' -d '{}' '${url}'`;
};

const show = async (response, place) => {
  const timing = response.headers.get("server-timing");
  const id = response.headers.get("x-request-id");
  const head = [`${response.status} ${response.statusText}`, timing, id && `request ${id}`].filter(Boolean).join("\n");
  const type = response.headers.get("content-type") || "";
  place.replaceChildren(make("pre", {}, head));
  if (type.startsWith("image/")) {
    place.append(make("img", { className: "answer", alt: "the answer", src: URL.createObjectURL(await response.blob()) }));
  } else if (type.includes("json")) {
    const text = JSON.stringify(await response.json(), null, 2);
    place.append(make("pre", {}, text.length > 20000 ? `${text.slice(0, 20000)}\n… ${text.length} characters` : text));
  } else if (type.startsWith("text/")) {
    place.append(make("pre", {}, await response.text()));
  } else {
    const blob = await response.blob();
    const link = make("a", { href: URL.createObjectURL(blob), download: "answer" }, `${type}, ${blob.size} bytes`);
    place.append(make("p", {}, link));
  }
};

const attempt = (method, path, operation) => {
  const fields = new Map();
  const place = make("div", { role: "status" });
  const form = make("form");
  const field = (name, input) => {
    input.id = `${operation.operationId}-${name}`;
    form.append(make("label", { htmlFor: input.id }, name), input);
    fields.set(name, input);
  };
  for (const parameter of operation.parameters || []) {
    const choices = resolve(parameter.schema).enum;
    const input = choices
      ? make("select", {}, ...["", ...choices].map((choice) => make("option", {}, choice)))
      : make("input", { placeholder: String(parameter.schema.example ?? (parameter.schema.examples || [""])[0]) });
    if (parameter.required) input.value = parameter.schema.example || "";
    field(parameter.name, input);
  }
  const images = operation.tags[0] === "images" && operation.requestBody;
  const answers = Object.keys(operation.responses["200"].content || {});
  if (answers.length > 1) field("accept", make("select", {}, ...answers.map((type) => make("option", {}, type))));
  if (images) field("photograph", make("input", { type: "file", accept: "image/*", required: true }));
  else if (operation.requestBody) field("body", make("input", { value: "{}" }));
  form.append(make("button", {}, "Send"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    const headers = new Headers();
    let target = path;
    for (const parameter of operation.parameters || []) {
      const value = fields.get(parameter.name).value;
      if (value === "") continue;
      if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(value));
      if (parameter.in === "query") query.set(parameter.name, value);
      if (parameter.in === "header") headers.set(parameter.name, value);
    }
    if (fields.has("accept")) headers.set("accept", fields.get("accept").value);
    const options = { method: method.toUpperCase(), headers };
    if (images) options.body = fields.get("photograph").files[0];
    else if (operation.requestBody) options.body = fields.get("body").value;
    place.replaceChildren(make("p", {}, "Waiting for the answer…"));
    try {
      await show(await fetch(query.size ? `${target}?${query}` : target, options), place);
    } catch (error) {
      place.replaceChildren(make("pre", {}, String(error)));
    }
  });
  return make("details", {}, make("summary", {}, "Try it"), form, place);
};

const draw = (method, path, operation) => {
  const body = make("div", {}, make("p", {}, operation.description || operation.summary));
  if ((operation.parameters || []).length) {
    const rows = operation.parameters.map((parameter) =>
      row(
        make("code", {}, parameter.name),
        `${parameter.in}${parameter.required ? ", required" : ""}`,
        make("code", {}, kind(parameter.schema)),
        parameter.description || parameter.schema.description || "",
      ),
    );
    body.append(make("h3", {}, "Parameters"), table(["name", "in", "type", ""], rows));
  }
  if (operation.requestBody) {
    const rows = Object.entries(operation.requestBody.content).map(([type, content]) =>
      row(make("code", {}, type), members(content.schema) || make("code", {}, kind(content.schema))),
    );
    body.append(make("h3", {}, "Body"), make("p", {}, operation.requestBody.description || ""), table(["type", ""], rows));
  }
  const answers = Object.entries(operation.responses).map(([status, response]) => {
    const shapes = Object.entries(response.content || {}).map(([type, content]) => {
      const inner = status === "200" && members(content.schema);
      return inner ? make("details", {}, make("summary", {}, type), inner) : make("div", {}, make("code", {}, type));
    });
    return row(make("code", {}, status), make("div", {}, response.description, ...shapes));
  });
  body.append(make("h3", {}, "Answers"), table(["status", ""], answers));
  body.append(make("h3", {}, "From a shell"), make("pre", {}, curl(method, path, operation)), attempt(method, path, operation));
  const summary = make(
    "summary", {},
    make("span", { className: `method ${method}` }, method.toUpperCase()),
    make("code", {}, path),
    make("span", { className: "summary" }, operation.summary),
  );
  return make("details", { className: "operation", id: operation.operationId }, summary, body);
};

const start = async () => {
  const place = document.getElementById("operations");
  try {
    api = await (await fetch("/openapi.json")).json();
  } catch (error) {
    place.replaceChildren(make("p", {}, `The description cannot be read: ${error}`));
    return;
  }
  document.getElementById("version").textContent = api.info.version;
  document.getElementById("about").textContent = api.info.description;
  place.replaceChildren();
  for (const tag of api.tags) {
    place.append(make("h2", {}, tag.name), make("p", { className: "note" }, tag.description));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags[0] === tag.name) place.append(draw(method, path, operation));
      }
    }
  }
  const wanted = location.hash && document.getElementById(location.hash.slice(1));
  if (wanted) wanted.open = true;
};

start();
