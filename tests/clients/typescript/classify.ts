// Lists the models of a server, classifies a photograph as a file and as a form, and prints the best label.
//
// usage: node built/classify.js URL PHOTO

import { strict as assert } from "node:assert";
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Outcome = components["schemas"]["ImageOutcome"];

const [url, photo] = process.argv.slice(2);
assert(url && photo, "usage: classify.js URL PHOTO");
const client = createClient<paths>({ baseUrl: url });
const image = new Blob([await readFile(photo)]);

const best = (outcome: Outcome | undefined): components["schemas"]["Prediction"] => {
  assert(outcome && "predictions" in outcome, JSON.stringify(outcome));
  const [first] = outcome.predictions;
  assert(first);
  return first;
};

const models = await client.GET("/v1/models");
assert(models.data, JSON.stringify(models.error));
const model = models.data.models.find((candidate) => candidate.default);
assert(model && model.classes > 1);

const file = await client.POST("/v1/classify", {
  params: { query: { top_k: 2 } },
  headers: { "content-type": "application/octet-stream" },
  body: image,
  bodySerializer: (body) => body,
});
assert(file.data, JSON.stringify(file.error));
assert.equal(file.data.model.id, model.id);
const prediction = best(file.data.results[0]);

const form = await client.POST("/v1/classify", {
  body: { images: [image, new Blob(["no image"])] },
  bodySerializer: (body) => {
    const form = new FormData();
    if ("images" in body) for (const part of body.images) form.append("images", part);
    return form;
  },
});
assert(form.data, JSON.stringify(form.error));
assert.deepEqual(best(form.data.results[0]), prediction);
const failed = form.data.results[1];
assert(failed && "error" in failed);
const code: components["schemas"]["ErrorCode"] = failed.error.code;
assert.equal(code, "unsupported_image_format");

const refused = await client.POST("/v1/classify", { params: { query: { model: "missing" } }, body: { images: [""] } });
assert.equal(refused.error?.code, "unknown_model");
console.log(`typescript: ${prediction.label}`);
