"use strict";
// Draws /openapi.json, and sends requests to the server that the page is from. Nothing is asked of any other host, and no text of
// the document is ever taken for markup.

const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

let api;

// Words, in which `…` is code, paragraphs are apart by an empty line, and lines that begin with "- " are a list.
const words = (text) =>
  text.split("`").map((piece, i) => (i % 2 ? make("code", {}, piece) : piece));
const prose = (text) =>
  make(
    "div",
    { className: "prose" },
    ...(text || "").split("\n\n").map((paragraph) =>
      paragraph.startsWith("- ")
        ? make("ul", {}, ...paragraph.slice(2).split("\n- ").map((item) => make("li", {}, ...words(item))))
        : make("p", {}, ...words(paragraph)),
    ),
  );

// The model in examples: the default model of this server.
const isModel = (parameter) => parameter.name === "model" || parameter.name === "id";
const example = (parameter) => String((parameter.schema.examples || [""])[0]);
const filled = (path, operation) =>
  (operation.parameters || [])
    .filter((parameter) => parameter.in === "path")
    .reduce((target, parameter) => target.replace(`{${parameter.name}}`, encodeURIComponent(example(parameter))), path);

// The values that a parameter can have, if they are known.
const choices = (parameter) => {
  const schema = resolve(parameter.schema);
  if (schema.enum) return schema.enum;
  if (schema.type === "boolean") return ["true", "false"];
  return isModel(parameter) ? parameter.schema.examples : undefined;
};

const resolve = (schema) => {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? api.components.schemas[name] : schema || {};
};

// A short name for what a schema takes.
const kind = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return resolve(schema).enum ? kind(resolve(schema)) : schema.$ref.split("/").pop();
  if (schema.format === "binary") return "file";
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf || schema.oneOf) return (schema.anyOf || schema.oneOf).map(kind).join(" or ");
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
      make("div", {}, required ? null : make("span", { className: "note" }, "optional"), prose(member.description), more),
    );
  });
  return table(["member", "type", ""], rows);
};

const curl = (method, path, operation) => {
  const url = `${location.origin}${filled(path, operation)}`;
  if (!operation.requestBody) return `curl '${url}'`;
  if (operation.tags[0] === "images") return `curl --data-binary @photo.jpg -H 'content-type: image/jpeg' '${url}'`;
  return `curl -X ${method.toUpperCase()} -H 'content-type: application/json' -d '{}' '${url}'`;
};

// A picture for visitors who have no photograph at hand: a landscape, drawn here, so that it comes from no other host.
const samplePhotograph = () => {
  const canvas = make("canvas", { width: 320, height: 240 });
  const pen = canvas.getContext("2d");
  const sky = pen.createLinearGradient(0, 0, 0, 150);
  sky.addColorStop(0, "#3f7fc4");
  sky.addColorStop(1, "#d6e8f6");
  pen.fillStyle = sky;
  pen.fillRect(0, 0, 320, 150);
  pen.fillStyle = "#2e6f8e";
  pen.fillRect(0, 150, 320, 90);
  pen.fillStyle = "#f3f0e6";
  pen.beginPath();
  for (const [x, y] of [[70, 165], [250, 165], [225, 195], [95, 195]]) pen.lineTo(x, y);
  pen.fill();
  pen.fillStyle = "#b5432f";
  pen.fillRect(120, 140, 80, 25);
  pen.fillStyle = "#33404d";
  pen.fillRect(150, 105, 18, 35);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
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
  const images = operation.tags[0] === "images" && operation.requestBody;
  const preview = make("img", { className: "preview", alt: "the photograph", hidden: true });
  let sample = null;
  if (images) {
    const input = make("input", { type: "file", accept: "image/*" });
    const showPreview = (blob) => {
      if (preview.src) URL.revokeObjectURL(preview.src);
      preview.hidden = !blob;
      if (blob) preview.src = URL.createObjectURL(blob);
    };
    const button = make("button", { type: "button" }, "Use a sample");
    button.addEventListener("click", async () => {
      input.value = "";
      sample = await samplePhotograph();
      showPreview(sample);
    });
    input.addEventListener("change", () => {
      sample = null;
      showPreview(input.files[0]);
    });
    field("photograph", input);
    form.append(make("div", { className: "sample" }, button, preview));
  }
  for (const parameter of operation.parameters || []) {
    const values = choices(parameter);
    const none = parameter.required ? [] : [make("option", { value: "" }, "(not set)")];
    const input = values
      ? make("select", {}, ...none, ...values.map((value) => make("option", {}, value)))
      : make("input", { placeholder: example(parameter) });
    if (parameter.required) input.value = example(parameter);
    field(parameter.name, input);
  }
  const answers = Object.keys(operation.responses["200"].content || {});
  if (answers.length > 1) field("accept", make("select", {}, ...answers.map((type) => make("option", {}, type))));
  if (!images && operation.requestBody) field("body", make("input", { value: "{}" }));
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
    if (images) {
      options.body = sample || fields.get("photograph").files[0];
      if (!options.body) {
        place.replaceChildren(make("p", {}, "Choose a photograph first, or use the sample."));
        return;
      }
      // The server looks at the file itself; a browser may not know its type.
      headers.set("content-type", "application/octet-stream");
    } else if (operation.requestBody) options.body = fields.get("body").value;
    place.replaceChildren(make("p", {}, "Waiting for the answer…"));
    try {
      await show(await fetch(query.size ? `${target}?${query}` : target, options), place);
    } catch (error) {
      place.replaceChildren(make("pre", {}, String(error)));
    }
  });
  return make("details", { className: "attempt", open: Boolean(images) }, make("summary", {}, "Try it"), form, place);
};

const draw = (method, path, operation) => {
  const body = make("div", {}, prose(operation.description || operation.summary));
  if ((operation.parameters || []).length) {
    const rows = operation.parameters.map((parameter) =>
      row(
        make("code", {}, parameter.name),
        `${parameter.in}${parameter.required ? ", required" : ""}`,
        make("code", {}, kind(parameter.schema)),
        prose(parameter.description || resolve(parameter.schema).description),
      ),
    );
    body.append(make("h3", {}, "Parameters"), table(["name", "in", "type", ""], rows));
  }
  if (operation.requestBody) {
    const rows = Object.entries(operation.requestBody.content).map(([type, content]) =>
      row(make("code", {}, type), members(content.schema) || make("code", {}, kind(content.schema))),
    );
    body.append(make("h3", {}, "Body"), prose(operation.requestBody.description), table(["type", ""], rows));
  }
  const answers = Object.entries(operation.responses).map(([status, response]) => {
    const shapes = Object.entries(response.content || {}).map(([type, content]) => {
      const inner = status === "200" && members(content.schema);
      return inner ? make("details", {}, make("summary", {}, type), inner) : make("div", {}, make("code", {}, type));
    });
    return row(make("code", {}, status), make("div", {}, prose(response.description), ...shapes));
  });
  body.append(make("h3", {}, "Answers"), table(["status", ""], answers));
  body.append(make("h3", {}, "From a shell"), make("pre", {}, curl(method, path, operation)));
  // Trying comes before reading where it takes only a photograph.
  body.firstChild.after(attempt(method, path, operation));
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
  const models = api.paths["/v1/models/{id}"].get.parameters[0].schema.examples;
  document.getElementById("version").textContent = `${api.info.version}, serves ${models.join(", ")}`;
  document.getElementById("about").replaceChildren(prose(api.info.description));
  place.replaceChildren();
  for (const tag of api.tags) {
    place.append(make("h2", {}, tag.name), make("div", { className: "note" }, prose(tag.description)));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags[0] === tag.name) place.append(draw(method, path, operation));
      }
    }
  }
  // An open operation shows what the page can do: the one that the address names, else the first one.
  const wanted = location.hash && document.getElementById(location.hash.slice(1));
  (wanted || place.querySelector(".operation")).open = true;
  if (wanted) wanted.scrollIntoView();
};

start();
