// Holds resources against their operators' definitions: [[name, resource], …] in the file that is named.
import fs from "node:fs";
import { PrometheusRule, ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1";

const kinds = { PrometheusRule, ServiceMonitor, ScaledObject };

for (const [name, resource] of JSON.parse(fs.readFileSync(process.argv[2], "utf8"))) {
  try {
    new kinds[resource.kind](resource).validate();
  } catch (error) {
    console.error(`${name}: ${error.message}`);
    process.exitCode = 1;
  }
}
