//! What the operations of the document have in common.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::ShedStatus;
use crate::server::problem::status_and_title;
use crate::service::Code;

/// A method on a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
    /// The content of a success, by media type.
    pub(super) answer: Value,
    pub(super) errors: Vec<Code>,
    /// Of the errors' bodies, where they are not problems.
    pub(super) error_schema: Option<Value>,
}

/// What can happen anywhere.
const ANYWHERE: [Code; 2] = [Code::Internal, Code::DeadlineExceeded];

impl Operation {
    /// A `GET` of JSON.
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

    pub(super) fn describe(self, shed: ShedStatus, problem: &Value) -> Value {
        let request_id = json!({
            "description": "The client's, if it sent one that can stand in a log; else made up. It is in the \
                server's log, too.",
            "schema": { "type": "string" },
        });
        let mut ok_headers = json!({ "x-request-id": request_id });
        if self.body.is_some() && self.tag == "images" {
            ok_headers["server-timing"] = json!({
                "description": "Milliseconds spent on read, decode, resize, queue, infer and encode.",
                "schema": { "type": "string" },
            });
        }
        let mut responses = Map::new();
        responses
            .insert("200".into(), json!({ "description": "Success.", "headers": ok_headers, "content": self.answer }));
        let mut statuses: BTreeMap<u16, Vec<(&str, Code)>> = BTreeMap::new();
        for code in self.errors.iter().chain(&ANYWHERE) {
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
                headers["retry-after"] = json!({ "description": "Seconds, by the present \
                    backlog.", "schema": { "type": "integer", "minimum": 1 } });
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

/// The parameters that a path has in braces.
pub(super) fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let describe = |name: &str| match name {
        "version" => json!({ "type": "string", "description": "Every model has one version.", "example": "1" }),
        _ => json!({ "type": "string", "description": "A model's name.", "example": "ghostnetv2-cifar10" }),
    };
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": describe(name) })).collect()
}

/// The headers that requests with images may have.
pub(super) fn headers() -> Vec<Value> {
    let header = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "header", "description": description, "schema": schema });
    vec![
        header(
            "x-request-timeout-ms",
            "How long the client is going to wait, milliseconds. The server drops the work when that is over, and \
                says at once if \
             it cannot be met.",
            json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX, "example": 1000 }),
        ),
        header(
            "priority",
            "RFC 9218: an urgency of 4 to 7 (`u=5`) is background work, which goes behind everybody who waits.",
            json!({ "type": "string", "example": "u=5" }),
        ),
        header(
            "x-request-id",
            "Returned with the answer and written to the log.",
            json!({ "type": "string", "maxLength": 128 }),
        ),
    ]
}
