// Draws a server's page /docs without a browser, and checks what a reader sees.
//
// usage: node docs_page.js URL
//
// The document object has only what the page uses: elements with properties and children.

const assert = require("node:assert/strict");
const vm = require("node:vm");

const url = process.argv[2];

class Element {
  constructor(tag) {
    Object.assign(this, { tag, nodes: [], className: "" });
  }
  append(...nodes) {
    this.nodes.push(...nodes);
  }
  replaceChildren(...nodes) {
    this.nodes = nodes;
  }
  get firstChild() {
    return { after: (...nodes) => this.nodes.splice(1, 0, ...nodes) };
  }
  set textContent(text) {
    this.nodes = [text];
  }
  get textContent() {
    return this.nodes.map((node) => (typeof node === "string" ? node : node.textContent)).join("");
  }
  addEventListener() {}
  scrollIntoView() {}
  // All elements inside that fit.
  all(fits) {
    const inner = this.nodes.filter((node) => node instanceof Element);
    return inner.flatMap((node) => [...(fits(node) ? [node] : []), ...node.all(fits)]);
  }
  querySelector(selector) {
    return this.all((node) => `.${node.className}` === selector)[0];
  }
}

const main = async () => {
  const places = Object.fromEntries(["operations", "version", "about"].map((id) => [id, new Element("div")]));
  const page = {
    document: { createElement: (tag) => new Element(tag), getElementById: (id) => places[id] },
    location: { origin: url, hash: "" },
    fetch: (path) => fetch(new URL(path, url)),
    console,
  };
  const script = await (await fetch(new URL("/docs/docs.js", url))).text();
  const models = (await (await fetch(new URL("/v1/models", url))).json()).models;
  vm.runInNewContext(script, page);
  for (let tries = 0; tries < 100 && !places.operations.querySelector(".operation"); tries++) {
    await new Promise((done) => setTimeout(done, 20));
  }

  const operations = places.operations.all((node) => node.className === "operation");
  assert(operations.length > 20);
  assert.equal(operations[0].id, "classify");
  assert(operations[0].open, "the first operation can be tried at once");
  const text = [places.about, places.operations].map((place) => place.textContent).join();
  assert(!text.includes("`"), text.slice(text.indexOf("`") - 100).slice(0, 200));

  const field = (id) => places.operations.all((node) => node.id === id)[0];
  const options = (id) => field(id).nodes.map((option) => option.textContent);
  const names = models.map((model) => model.id);
  const unset = "(not set)";
  assert.deepEqual(options("features-dtype"), [unset, "f32", "f16"]);
  assert.deepEqual(options("features-fit"), [unset, "crop", "letterbox", "stretch"]);
  assert.deepEqual(options("features-cut"), [unset, "deepest", "timm"]);
  assert.deepEqual(options("features-normalize"), [unset, "true", "false"]);
  assert.deepEqual(options("classify-model"), [unset, ...names]);
  assert.deepEqual(options("model-id"), names);
  assert.equal(field("classify-photograph").type, "file");

  const name = models.find((model) => model.default).id;
  assert(places.version.textContent.includes(name));
  const commands = places.operations.all((node) => node.tag === "pre" && node.textContent.startsWith("curl"));
  const named = commands.filter((command) => command.textContent.includes(`/models/${name}`));
  assert(named.length >= 11, `${named.length} commands name the served model`);
  for (const command of commands) assert(!/[{}]\w/.test(command.textContent), command.textContent);
  console.log(`${operations.length} operations`);
};

main();
