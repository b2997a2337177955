//! `GET /openapi.json` describes the HTTP routes. It is generated from the types that handlers read and write and from
//! the table of errors. `GET /docs` is a page that shows it.

mod errors;
mod operations;
mod schemas;
mod v1;
mod v2;

use axum::Router;
use axum::body::Bytes;
use axum::extract::RawQuery;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, header};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::context::no_parameters;
use crate::server::app::App;
use crate::server::oip::{self, NamedModel};
use crate::server::problem::{Problem, ProblemBody};
use operations::Operation;
use schemas::{Schemas, simplify};

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
pub(super) fn routes(app: &App) -> Router<App> {
    // Maps of strings always serialise.
    let document = Bytes::from(serde_json::to_vec(&build_document(app)).unwrap_or_default());
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

/// The parts of the document whose order readers see: operations are in the order in which they are explained.
#[derive(Serialize)]
struct Document {
    openapi: &'static str,
    info: Value,
    servers: Value,
    tags: Value,
    #[serde(serialize_with = "in_order")]
    paths: Vec<(&'static str, Map<String, Value>)>,
    components: Value,
}

/// Writes pairs as an object that keeps their order.
fn in_order<S: Serializer>(paths: &[(&str, Map<String, Value>)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(paths.iter().map(|(path, methods)| (path, methods)))
}

/// Names of the served models, for examples. The server's default model is the first one.
struct ModelNames {
    /// Names under `/v1`.
    models: Vec<String>,
    /// Names under `/v2`, where the feature maps of a model are a model of their own.
    protocol: Vec<String>,
}

impl ModelNames {
    fn of(app: &App) -> Self {
        let default = app.service.default_model();
        let mut models: Vec<_> = app.service.models().map(|model| model.manifest.id.clone()).collect();
        let mut protocol: Vec<_> = oip::all(app).iter().map(NamedModel::name).collect();
        models.sort_by_key(|name| name != default);
        protocol.sort_by_key(|name| name != default);
        Self { models, protocol }
    }

    /// Examples for a parameter of an operation, if it is the name of a model.
    fn examples(&self, path: &str, parameter: &str) -> Option<&[String]> {
        let names = if path.starts_with("/v2") { &self.protocol } else { &self.models };
        matches!(parameter, "model" | "id").then_some(names)
    }
}

/// Makes the document.
fn build_document(app: &App) -> Document {
    let (config, names) = (&app.config, ModelNames::of(app));
    let mut schemas = Schemas::new();
    let mut operations = v1::image_and_model_operations(&mut schemas, config);
    operations.extend(v2::operations(&mut schemas, config));
    operations.extend(v1::operator_operations(config));
    let problem = schemas.answer::<ProblemBody<'_>>();
    let mut paths: Vec<(&str, Map<String, Value>)> = Vec::new();
    for operation in operations {
        let Operation { method, path, .. } = operation;
        let mut described = operation.describe(config.load.shed_status, &problem, &names);
        simplify(&mut described);
        match paths.iter_mut().find(|(other, _)| *other == path) {
            Some((_, methods)) => drop(methods.insert(method.into(), described)),
            None => paths.push((path, Map::from_iter([(method.into(), described)]))),
        }
    }
    let mut components = json!({ "schemas": schemas.into_components() });
    simplify(&mut components);
    Document {
        openapi: "3.1.0",
        info: json!({
            "title": "GhostServe",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Classifies images and returns feature maps. Errors under /v1 are problem details (RFC \
                9457) with a stable `code`. Errors under /v2 have the format of the Open Inference Protocol.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        }),
        servers: json!([{ "url": "/" }]),
        tags: json!([
            { "name": "images", "description": "Predictions, feature maps and attention for images." },
            { "name": "models", "description": "The served models and their execution plans." },
            { "name": "inference", "description": "The Open Inference Protocol, version 2, for clients of Triton and \
                KServe." },
            { "name": "operations", "description": "Endpoints for Prometheus, load balancers and container engines." },
        ]),
        paths,
        components,
    }
}
