//! `GET /openapi.json` describes the HTTP routes. It is generated from the types that handlers read and write and from
//! the table of errors. `GET /docs` is a page that shows it.

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

/// Content security policy of the page: it loads scripts, styles and data from this server only.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// Files of the page: path, media type, content.
const PAGE: [(&str, &str, &str); 3] = [
    ("/docs", "text/html; charset=utf-8", include_str!("../docs/index.html")),
    ("/docs/docs.css", "text/css; charset=utf-8", include_str!("../docs/docs.css")),
    ("/docs/docs.js", "text/javascript; charset=utf-8", include_str!("../docs/docs.js")),
];

/// Routes of the document and the page.
pub(super) fn routes(config: &Arc<Config>) -> Router<App> {
    // Maps of strings always serialise.
    let document = Bytes::from(serde_json::to_vec(&build_document(config)).unwrap_or_default());
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

/// Generates the document's schemas. Those of answers are references, those of requests are inlined.
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

    /// Schema of an answer.
    fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// Schema of a request's body.
    fn request<T: JsonSchema>(&mut self) -> Value {
        without_null(self.requests.subschema_for::<T>().to_value())
    }

    /// Query parameters that a struct is read from.
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

/// Removes `null` from the schema of an optional parameter: an absent parameter is not null.
fn without_null(mut schema: Value) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [single] = &types[..] {
            let single = single.clone();
            object.insert("type".into(), single);
        }
    }
    if let Some(Value::Array(choices)) = object.remove("anyOf") {
        let choices: Vec<_> = choices.into_iter().filter(|choice| choice["type"] != "null").collect();
        match &choices[..] {
            [Value::Object(single)] => single.iter().for_each(|(k, v)| {
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

/// Makes the document.
fn build_document(config: &Config) -> Value {
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
            "description": "Classifies images and returns feature maps. Errors under /v1 are problem details (RFC \
                9457) with a stable `code`. Errors under /v2 have the format of the Open Inference Protocol.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "images", "description": "Predictions, feature maps and attention for images." },
            { "name": "models", "description": "The served models and their execution plans." },
            { "name": "inference", "description": "The Open Inference Protocol, version 2, for clients of Triton and \
                KServe." },
            { "name": "operations", "description": "Endpoints for Prometheus, load balancers and container engines." },
        ],
        "paths": paths,
        "components": { "schemas": schemas.answers.take_definitions(true) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_of_an_optional_parameter_does_not_allow_null() {
        let number = json!({"type": ["integer", "null"], "minimum": 1, "default": null});
        assert_eq!(without_null(number), json!({"type": "integer", "minimum": 1}));
        let choice = json!({"description": "d", "anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]});
        assert_eq!(without_null(choice), json!({"description": "d", "type": "string", "enum": ["a"]}));
    }
}
