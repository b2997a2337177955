//! Operations of the document, and the parameters, headers and errors that they share.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::ModelNames;
use crate::config::ShedStatus;
use crate::server::problem::status_and_title;
use crate::service::Code;

/// One operation: a method on a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) parameters: Vec<Value>,
    /// The request's body, if the operation has one.
    pub(super) body: Option<Value>,
    /// Content of a successful response, by media type.
    pub(super) answer: Value,
    pub(super) errors: Vec<Code>,
    /// Schema of error bodies. `None` for problem details (RFC 9457).
    pub(super) error_schema: Option<Value>,
}

/// Errors that every operation can return.
const COMMON_ERRORS: [Code; 2] = [Code::Internal, Code::DeadlineExceeded];

impl Operation {
    /// A `GET` operation that returns JSON.
    pub(super) fn get(
        path: &'static str,
        id: &'static str,
        tag: &'static str,
        summary: &'static str,
        schema: Value,
    ) -> Self {
        Self {
            method: "get",
            path,
            id,
            tag,
            summary,
            description: "",
            parameters: path_parameters(path),
            body: None,
            answer: json!({ "application/json": { "schema": schema } }),
            errors: vec![Code::InvalidParameter],
            error_schema: None,
        }
    }

    /// Returns the operation as it appears in the document.
    pub(super) fn describe(mut self, shed: ShedStatus, problem: &Value, names: &ModelNames) -> Value {
        for parameter in &mut self.parameters {
            let name = parameter["name"].as_str().unwrap_or_default();
            if let Some(examples) = names.examples(self.path, name) {
                parameter["schema"]["examples"] = examples.into();
            }
        }
        let request_id = json!({
            "description": "The request's id: the client's, if it is valid, else a generated one. The server's \
                log contains it.",
            "schema": { "type": "string" },
        });
        let mut success_headers = json!({ "x-request-id": request_id });
        if self.body.is_some() && self.tag == "images" {
            success_headers["server-timing"] = json!({
                "description": "Time of the stages read, decode, resize, queue, infer and encode, milliseconds.",
                "schema": { "type": "string" },
            });
        }
        let mut responses = Map::new();
        let success = json!({ "description": "Success.", "headers": success_headers, "content": self.answer });
        responses.insert("200".into(), success);
        let mut statuses: BTreeMap<u16, Vec<(&str, Code)>> = BTreeMap::new();
        for code in self.errors.iter().chain(&COMMON_ERRORS) {
            let (status, title) = status_and_title(*code, shed);
            statuses.entry(status.as_u16()).or_default().push((title, *code));
        }
        let (kind, schema) = match &self.error_schema {
            Some(schema) => ("application/json", schema),
            None => ("application/problem+json", problem),
        };
        for (status, codes) in statuses {
            let mut headers = json!({ "x-request-id": request_id });
            if matches!(status, 429 | 503) {
                headers["retry-after"] = json!({
                    "description": "Seconds to wait before the next try, computed from the current backlog.",
                    "schema": { "type": "integer", "minimum": 1 },
                });
            }
            let names: Vec<_> = codes.iter().map(|(title, code)| format!("{title} (`{}`)", code.as_str())).collect();
            let content = json!({ kind: { "schema": schema } });
            let response = json!({ "description": names.join("; "), "headers": headers, "content": content });
            responses.insert(status.to_string(), response);
        }
        let mut operation = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "parameters": self.parameters,
            "responses": responses,
        });
        if !self.description.is_empty() {
            operation["description"] = self.description.into();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation
    }
}

/// Schema of a body that is not text. `format` is the word of OpenAPI 3.0, and the one that generators know; version
/// 3.1 says it with `contentMediaType`.
pub(super) fn binary() -> Value {
    json!({ "type": "string", "format": "binary" })
}

/// Parameters of a path, which it names in braces.
pub(super) fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let describe = |name: &str| match name {
        "version" => json!({ "type": "string", "description": "Version. Every model has one.", "examples": ["1"] }),
        _ => json!({ "type": "string", "description": "Name of the model." }),
    };
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": describe(name) })).collect()
}

/// Header parameters of requests with images.
pub(super) fn headers() -> Vec<Value> {
    fn header(name: &str, description: &str, schema: Value) -> Value {
        json!({ "name": name, "in": "header", "description": description, "schema": schema })
    }
    vec![
        header(
            "x-request-timeout-ms",
            "Time that the client will wait for the answer, milliseconds. The server drops the request after it. A \
             deadline that cannot be met is rejected immediately (504).",
            json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX, "examples": [1000] }),
        ),
        header(
            "priority",
            "Priority (RFC 9218). An urgency of 4 to 7 (`u=5`) means background work, which is done after all waiting \
             interactive requests.",
            json!({ "type": "string", "examples": ["u=5"] }),
        ),
        header(
            "x-request-id",
            "Id of the request. It is returned with the answer and written to the log.",
            json!({ "type": "string", "maxLength": 128 }),
        ),
    ]
}
