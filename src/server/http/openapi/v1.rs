//! Operations of `/v1`, of the document, and of the endpoints for operators.

use serde_json::{Value, json};

use super::Schemas;
use super::errors::{ImageRoutes, image_errors};
use super::operations::{Operation, headers};
use crate::config::Config;
use crate::preprocess::{Geometry, ImageInfo};
use crate::server::http::answers::{ItemError, ModelRef};
use crate::server::http::classify::{ClassifyAnswer, ClassifyParameters};
use crate::server::http::features::{AttentionParameters, FeatureParameters, Layer};
use crate::server::http::models::{Details, Listing};
use crate::server::tensors::ElementType;
use crate::service::{Code, Prediction};

/// Request body with one or several images.
fn image_body(config: &Config, several: bool) -> Value {
    let max_images = if several { config.request.max_images_per_request } else { 1 };
    let file = json!({ "schema": { "type": "string", "contentMediaType": "application/octet-stream" } });
    json!({
        "required": true,
        "description": format!(
            "Image files: JPEG, PNG, WebP, GIF, BMP or TIFF. The first bytes of a file determine its format. Maximum \
             size of a single file: {} bytes, of a form or JSON: {} bytes.",
            config.request.max_body_bytes, config.request.max_multi_body_bytes
        ),
        "content": {
            "image/*": file,
            "application/octet-stream": file,
            "multipart/form-data": { "schema": {
                "type": "object",
                "properties": { "images": {
                    "type": "array",
                    "description": "Each file part is an image. Its name is ignored.",
                    "items": { "type": "string", "contentMediaType": "application/octet-stream" },
                    "minItems": 1,
                    "maxItems": max_images,
                } },
                "required": ["images"],
            } },
            "application/json": { "schema": {
                "type": "object",
                "properties": { "images": {
                    "type": "array",
                    "items": { "type": "string", "contentEncoding": "base64", "description": "Base64 or a \
                        base64 data URL." },
                    "minItems": 1,
                    "maxItems": max_images,
                } },
                "required": ["images"],
                "additionalProperties": false,
            } },
        },
    })
}

/// Content of an answer with maps. Handlers write its JSON without a type, so its schema is written here.
fn map_content(schemas: &mut Schemas, attention: bool) -> Value {
    let tensor = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "shape": { "type": "array", "items": { "type": "integer", "minimum": 1 } },
            "channels": { "type": "integer" },
            "stride": { "type": "integer", "description": "Input pixels for one element of the map, per axis." },
            "dtype": schemas.answer::<ElementType>(),
            "data": { "type": "string", "contentEncoding": "base64", "description": "Row-major, little-endian." },
        },
        "required": ["name", "shape", "dtype", "data"],
    });
    let success = json!({
        "type": "object",
        "properties": {
            "image": schemas.answer::<ImageInfo>(),
            "geometry": schemas.answer::<Geometry>(),
            "predictions": { "type": "array", "items": schemas.answer::<Prediction>() },
            "features": { "type": "array", "items": tensor },
        },
        "required": ["image", "geometry", "features"],
    });
    let error =
        json!({ "type": "object", "properties": { "error": schemas.answer::<ItemError>() }, "required": ["error"] });
    let mut schema = json!({
        "type": "object",
        "properties": {
            "model": schemas.answer::<ModelRef<'_>>(),
            "results": { "type": "array", "items": { "anyOf": [success, error] } },
        },
        "required": ["model", "results"],
    });
    if attention {
        let layer = schemas.answer::<Layer>();
        schema["properties"]["layer"] = json!({ "type": "string", "description": "The bottleneck of this answer." });
        schema["properties"]["layers"] =
            json!({ "type": "array", "items": layer, "description": "The bottlenecks with DFC attention." });
    }
    json!({
        "application/json": { "schema": schema },
        "application/vnd.safetensors": {},
        "application/x-npz": {},
        "image/png": {},
    })
}

/// Operations that are not part of the Open Inference Protocol.
pub(super) fn operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let mut operations = Vec::from(image_operations(schemas, config));
    operations.extend(model_operations(schemas));
    operations.extend(document_operations());
    if config.addresses.admin_addr.is_none() {
        operations.extend(admin_operations());
    }
    operations
}

/// Operations that take images.
fn image_operations(schemas: &mut Schemas, config: &Config) -> [Operation; 3] {
    let mut classify = schemas.query::<ClassifyParameters>();
    let mut features = schemas.query::<FeatureParameters>();
    let mut attention = schemas.query::<AttentionParameters>();
    for parameters in [&mut classify, &mut features, &mut attention] {
        parameters.extend(headers());
    }
    let answer = json!({ "application/json": { "schema": schemas.answer::<ClassifyAnswer<'_>>() } });
    let post = |path, id, summary, description, routes| Operation {
        method: "post",
        path,
        id,
        tag: "images",
        summary,
        description,
        parameters: Vec::new(),
        body: None,
        answer: Value::Null,
        errors: image_errors(routes),
        error_schema: None,
    };
    [
        Operation {
            parameters: classify,
            body: Some(image_body(config, true)),
            answer,
            ..post(
                "/v1/classify",
                "classify",
                "Classify images",
                "An invalid image does not affect the others: its result is an error. If all images are invalid, the \
                 request fails with the first error.",
                ImageRoutes::Classify,
            )
        },
        Operation {
            parameters: features,
            body: Some(image_body(config, true)),
            answer: map_content(schemas, false),
            ..post(
                "/v1/features",
                "features",
                "Feature maps and embeddings",
                "`Accept` selects the format: JSON with base64, safetensors, npz, or one level as a PNG image. Maps \
                 of several images are stacked, except in JSON.",
                ImageRoutes::Features,
            )
        },
        Operation {
            parameters: attention,
            body: Some(image_body(config, false)),
            answer: map_content(schemas, true),
            ..post(
                "/v1/attention",
                "attention",
                "Attention of a bottleneck",
                "Gate values of the DFC attention, as numbers or as a heatmap over the network's input \
                 (`Accept: image/png`).",
                ImageRoutes::Features,
            )
        },
    ]
}

/// Operations that describe the served models.
fn model_operations(schemas: &mut Schemas) -> [Operation; 2] {
    [
        Operation {
            errors: vec![Code::InvalidParameter, Code::Overloaded],
            ..Operation::get("/v1/models", "models", "models", "The served models", schemas.answer::<Listing>())
        },
        Operation {
            errors: vec![Code::InvalidParameter, Code::InvalidRequest, Code::UnknownModel, Code::Overloaded],
            ..Operation::get("/v1/models/{id}", "model", "models", "Details of a model", schemas.answer::<Details>())
        },
    ]
}

/// Operations of the document.
fn document_operations() -> [Operation; 2] {
    [
        Operation {
            answer: json!({ "application/json": { "schema": { "type": "object" } } }),
            ..Operation::get("/openapi.json", "openapi", "operations", "This document", Value::Null)
        },
        Operation {
            answer: json!({ "text/html": { "schema": { "type": "string" } } }),
            errors: Vec::new(),
            ..Operation::get("/docs", "docs", "operations", "Page to read and try this document", Value::Null)
        },
    ]
}

/// Operations for operators.
fn admin_operations() -> [Operation; 3] {
    let text = |path, id, summary, errors| Operation {
        answer: json!({ "text/plain": { "schema": { "type": "string" } } }),
        errors,
        ..Operation::get(path, id, "operations", summary, Value::Null)
    };
    [
        text("/metrics", "metrics", "Metrics in Prometheus' text format", Vec::new()),
        text("/livez", "livez", "Whether the process is alive", Vec::new()),
        text("/readyz", "readyz", "Whether requests should be sent here", vec![Code::NotReady, Code::Draining]),
    ]
}
