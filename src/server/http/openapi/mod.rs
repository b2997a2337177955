//! `GET /openapi.json`, made of the types that handlers read and write and of the table of errors; and `GET /docs`,
//! which shows it.

mod errors;
mod operations;
mod v1;
mod v2;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::RawQuery;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::context::no_parameters;
use crate::config::Config;
use crate::server::app::App;
use crate::server::problem::{Problem, ProblemBody};
use operations::Operation;

/// Scripts and styles of the page come from here, and so does what it asks for; nothing from anywhere else.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
const PAGE: [(&str, &str, &str); 3] = [
    ("/docs", "text/html; charset=utf-8", include_str!("../docs/index.html")),
    ("/docs/docs.css", "text/css; charset=utf-8", include_str!("../docs/docs.css")),
    ("/docs/docs.js", "text/javascript; charset=utf-8", include_str!("../docs/docs.js")),
];

/// The document and the page.
pub(super) fn routes(config: &Arc<Config>) -> Router<App> {
    // Maps of strings always serialise.
    let document = Bytes::from(serde_json::to_vec(&document(config)).unwrap_or_default());
    let handler = async move |RawQuery(query): RawQuery| -> Result<Response, Problem> {
        no_parameters(query.as_deref())?;
        Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
    };
    PAGE.into_iter().fold(Router::new().route("/openapi.json", get(handler)), |routes, (path, kind, text)| {
        let headers: [(HeaderName, HeaderValue); 2] =
            [(header::CONTENT_TYPE, HeaderValue::from_static(kind)), (header::CONTENT_SECURITY_POLICY, POLICY)];
        routes.route(path, get(async move || (headers, text)))
    })
}

/// Schemas for the document: of answers as references, of what is asked in place.
struct Schemas {
    answers: SchemaGenerator,
    requests: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12();
        let answers = settings.clone().for_serialize().with(|s| s.definitions_path = "/components/schemas".into());
        let requests = settings.for_deserialize().with(|s| s.inline_subschemas = true);
        Self { answers: answers.into_generator(), requests: requests.into_generator() }
    }

    /// Of an answer.
    fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// Of a request's body.
    fn request<T: JsonSchema>(&mut self) -> Value {
        without_null(self.requests.subschema_for::<T>().to_value())
    }

    /// The parameters in the query that a struct is read from.
    fn query<T: JsonSchema>(&mut self) -> Vec<Value> {
        let schema = self.requests.subschema_for::<T>().to_value();
        let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let parameter = |(name, schema): (String, Value)| {
            let mut schema = without_null(schema);
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({ "name": name, "in": "query", "description": description, "schema": schema })
        };
        properties.into_iter().map(parameter).collect()
    }
}

/// A parameter that is left out is not null.
fn without_null(mut schema: Value) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            object.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(choices)) = object.remove("anyOf") {
        let choices: Vec<_> = choices.into_iter().filter(|choice| choice["type"] != "null").collect();
        match &choices[..] {
            [Value::Object(one)] => one.iter().for_each(|(k, v)| {
                object.entry(k.clone()).or_insert_with(|| v.clone());
            }),
            _ => drop(object.insert("anyOf".into(), Value::Array(choices))),
        }
    }
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
    schema
}

fn document(config: &Config) -> Value {
    let mut schemas = Schemas::new();
    let mut operations = v1::operations(&mut schemas, config);
    operations.extend(v2::operations(&mut schemas, config));
    let problem = schemas.answer::<ProblemBody<'_>>();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let Operation { method, path, .. } = operation;
        let described = operation.describe(config.load.shed_status, &problem);
        if let Value::Object(methods) = paths.entry(path).or_insert_with(|| json!({})) {
            methods.insert(method.into(), described);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "GhostServe",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Classifies photographs, and hands out the feature maps behind the classes. Errors under \
                /v1 are \
                problem details (RFC 9457) with a stable `code`; those under /v2 are the Open Inference Protocol's.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "images", "description": "Photographs in, predictions or maps out." },
            { "name": "models", "description": "What is served, and how." },
            { "name": "inference", "description": "The Open Inference Protocol, version 2, as Triton's and KServe's \
                clients speak it." },
            { "name": "operations", "description": "For Prometheus, load balancers and container engines." },
        ],
        "paths": paths,
        "components": { "schemas": schemas.answers.take_definitions(true) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_parameter_is_of_its_type() {
        let number = json!({"type": ["integer", "null"], "minimum": 1, "default": null});
        assert_eq!(without_null(number), json!({"type": "integer", "minimum": 1}));
        let choice = json!({"description": "d", "anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]});
        assert_eq!(without_null(choice), json!({"description": "d", "type": "string", "enum": ["a"]}));
    }
}
