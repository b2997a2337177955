// Writes api.d.ts, the types of a server's HTTP interface.
//
// usage: node generate.js URL
//
// openapi-typescript makes `string` of a binary body. The transformation makes it `Blob`, which `fetch` sends.

import { writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const blob = ts.factory.createTypeReferenceNode("Blob");
const types = await openapiTS(new URL("/openapi.json", process.argv[2]), {
  transform: (schema) => (schema.format === "binary" ? blob : undefined),
});
await writeFile("api.d.ts", astToString(types));
