//! What a server says about itself: version, model and plan, read from the labels of its metrics.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// What a GhostServe says about itself at `/metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerInfo {
    /// Version of the program.
    pub version: String,
    /// Revision of the source code; `unknown` if the build did not record it.
    pub revision: String,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// The served models, in the order of the metrics.
    pub models: Vec<ServedModel>,
}

/// A model of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServedModel {
    /// Name of the model.
    pub name: String,
    /// Architecture of its network; empty if the server does not know it.
    pub architecture: String,
    /// Digest of its weights, as `sha256:…`.
    pub digest: String,
    /// How the server runs it: execution provider, precision, workers and so on.
    pub plan: BTreeMap<String, String>,
}

impl ServerInfo {
    /// Reads the text of `/metrics`. `None` if it is not that of a GhostServe.
    #[must_use]
    pub fn from_metrics(text: &str) -> Option<Self> {
        let labels = |metric: &str| -> Vec<BTreeMap<String, String>> {
            let rest = |line: &str| line.strip_prefix(metric)?.strip_prefix('{').map(parse_labels);
            text.lines().filter_map(rest).collect()
        };
        let take = |labels: &BTreeMap<String, String>, name: &str| labels.get(name).cloned().unwrap_or_default();
        let build = labels("ghostserve_build_info").into_iter().next()?;
        let plans = labels("ghostserve_plan_info");
        let models = labels("ghostserve_model_info").into_iter().map(|model| {
            let name = take(&model, "model");
            let mut plan = plans.iter().find(|plan| plan.get("model") == Some(&name)).cloned().unwrap_or_default();
            plan.remove("model");
            ServedModel { architecture: take(&model, "architecture"), digest: take(&model, "digest"), plan, name }
        });
        Some(Self {
            version: take(&build, "version"),
            revision: take(&build, "revision"),
            onnxruntime: take(&build, "onnxruntime"),
            models: models.collect(),
        })
    }

    /// Reads the bodies of `/v2` and `/v1/models`, which state no revision, runtime and plan. `None` if they are not
    /// those of a GhostServe.
    #[must_use]
    pub fn from_metadata(server: &str, models: &str) -> Option<Self> {
        let server: Value =
            serde_json::from_str(server).ok().filter(|server: &Value| server["name"] == "ghostserve")?;
        let models: Value = serde_json::from_str(models).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let model = |model: &Value| ServedModel {
            name: text(&model["id"]),
            architecture: text(&model["architecture"]),
            digest: text(&model["digest"]),
            plan: BTreeMap::new(),
        };
        Some(Self {
            version: text(&server["version"]),
            revision: "unknown".to_owned(),
            onnxruntime: "unknown".to_owned(),
            models: models["models"].as_array()?.iter().map(model).collect(),
        })
    }

    /// Program, revision and runtime in one line.
    pub(super) fn program(&self) -> String {
        format!("GhostServe {} (revision {}), ONNX Runtime {}", self.version, self.revision, self.onnxruntime)
    }
}

impl ServedModel {
    /// Name, architecture and digest in one line.
    pub(super) fn identity(&self) -> String {
        let architecture = if self.architecture.is_empty() { "unknown architecture" } else { &self.architecture };
        format!("{} ({architecture}), {}", self.name, self.digest)
    }

    /// The plan in one line.
    pub(super) fn plan_summary(&self) -> String {
        let parts = self.plan.iter().map(|(name, value)| format!("{} {value}", name.replace('_', " ")));
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// Parses `name="value",…}`; backslashes escape quotes, backslashes and line ends.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = after.char_indices();
        let mut end = after.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped)) => value.push(escaped),
                    None => (),
                },
                other => value.push(other),
            }
        }
        labels.insert(name.trim_start_matches(',').to_owned(), value);
        rest = &after[end..];
        if rest.starts_with('}') {
            break;
        }
    }
    labels
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn metrics_tell_the_version_the_models_and_their_plans() {
        let info = ServerInfo::from_metrics(
            "# HELP ghostserve_build_info Always 1.\n\
             ghostserve_build_info{onnxruntime=\"1.2\",revision=\"abc\",version=\"0.3.0\"} 1\n\
             ghostserve_model_info{architecture=\"a_100\",digest=\"sha256:1\",model=\"one\"} 1\n\
             ghostserve_model_info{architecture=\"\",digest=\"sha256:2\",model=\"t\\\"wo\"} 1\n\
             ghostserve_plan_info{model=\"one\",provider=\"cpu\",workers=\"2\"} 1\n",
        )
        .unwrap();
        assert_eq!(info.program(), "GhostServe 0.3.0 (revision abc), ONNX Runtime 1.2");
        assert_eq!(info.models[0].identity(), "one (a_100), sha256:1");
        assert_eq!(info.models[0].plan_summary(), "provider cpu, workers 2");
        assert_eq!(info.models[1].identity(), "t\"wo (unknown architecture), sha256:2");
        assert!(info.models[1].plan.is_empty());
    }

    #[test]
    fn metadata_tells_the_version_and_the_models() {
        let models = r#"{"models":[{"id":"birds","architecture":"a","digest":"sha256:1"}]}"#;
        let info = ServerInfo::from_metadata(r#"{"name":"ghostserve","version":"0.3.0"}"#, models).unwrap();
        assert_eq!((info.version.as_str(), info.models[0].identity().as_str()), ("0.3.0", "birds (a), sha256:1"));
        assert_eq!(ServerInfo::from_metadata(r#"{"name":"triton","version":"2"}"#, models), None);
    }

    #[test]
    fn metrics_of_other_programs_tell_nothing() {
        assert_eq!(ServerInfo::from_metrics("process_cpu_seconds_total 1\n"), None);
        assert_eq!(ServerInfo::from_metrics("<html>ghostserve_build_info{</html>"), None);
    }
}
