//! `/v1`, and what operators use.

use serde_json::{Value, json};

use super::Schemas;
use super::errors::{Routes, image_errors};
use super::operations::{Operation, headers};
use crate::config::Config;
use crate::preprocess::{Geometry, ImageInfo};
use crate::server::http::answers::{ItemError, ModelRef};
use crate::server::http::classify::{ClassifyAnswer, ClassifyParameters};
use crate::server::http::features::{AttentionParameters, FeatureParameters, Layer};
use crate::server::http::models::{Details, Listing};
use crate::server::tensors::ElementType;
use crate::service::{Code, Prediction};

/// Bodies with images.
fn images(config: &Config, several: bool) -> Value {
    let max_images = if several { config.request.max_images_per_request } else { 1 };
    let file = json!({ "schema": { "type": "string", "contentMediaType": "application/octet-stream" } });
    json!({
        "required": true,
        "description": format!(
            "Image files: JPEG, PNG, WebP, GIF, BMP or TIFF; their first bytes decide. One is at most {} bytes, a \
                form or JSON at \
             most {}.",
            config.request.max_body_bytes, config.request.max_multi_body_bytes
        ),
        "content": {
            "image/*": file,
            "application/octet-stream": file,
            "multipart/form-data": { "schema": {
                "type": "object",
                "properties": { "images": {
                    "type": "array",
                    "description": "Each file part is an image, whatever it is called.",
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
                    "items": { "type": "string", "contentEncoding": "base64", "description": "Base64, or a data URL \
                        of it." },
                    "minItems": 1,
                    "maxItems": max_images,
                } },
                "required": ["images"],
                "additionalProperties": false,
            } },
        },
    })
}

/// JSON with maps in base64, which is written by hand.
fn maps(schemas: &mut Schemas, attention: bool) -> Value {
    let tensor = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "shape": { "type": "array", "items": { "type": "integer", "minimum": 1 } },
            "channels": { "type": "integer" },
            "stride": { "type": "integer", "description": "Pixels of the network's input for one of the map." },
            "dtype": schemas.answer::<ElementType>(),
            "data": { "type": "string", "contentEncoding": "base64", "description": "Row-major, little-endian." },
        },
        "required": ["name", "shape", "dtype", "data"],
    });
    let good = json!({
        "type": "object",
        "properties": {
            "image": schemas.answer::<ImageInfo>(),
            "geometry": schemas.answer::<Geometry>(),
            "predictions": { "type": "array", "items": schemas.answer::<Prediction>() },
            "features": { "type": "array", "items": tensor },
        },
        "required": ["image", "geometry", "features"],
    });
    let bad =
        json!({ "type": "object", "properties": { "error": schemas.answer::<ItemError>() }, "required": ["error"] });
    let mut schema = json!({
        "type": "object",
        "properties": {
            "model": schemas.answer::<ModelRef<'_>>(),
            "results": { "type": "array", "items": { "anyOf": [good, bad] } },
        },
        "required": ["model", "results"],
    });
    if attention {
        let layer = schemas.answer::<Layer>();
        schema["properties"]["layers"] =
            json!({ "type": "array", "items": layer, "description": "The bottlenecks that have attention." });
    }
    json!({
        "application/json": { "schema": schema },
        "application/vnd.safetensors": {},
        "application/x-npz": {},
        "image/png": {},
    })
}

pub(super) fn operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let mut operations = Vec::from(image_operations(schemas, config));
    operations.extend(model_operations(schemas));
    operations.extend(document_operations());
    if config.addresses.admin_addr.is_none() {
        operations.extend(admin_operations());
    }
    operations
}

/// The operations that take images.
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
            body: Some(images(config, true)),
            answer,
            ..post(
                "/v1/classify",
                "classify",
                "Classify images",
                "A bad image does not fail its neighbours: it has its error in its place. If all are bad, the \
                    request fails \
                 with the first one's error.",
                Routes::Classify,
            )
        },
        Operation {
            parameters: features,
            body: Some(images(config, true)),
            answer: maps(schemas, false),
            ..post(
                "/v1/features",
                "features",
                "Feature maps and embeddings",
                "`Accept` chooses the container: JSON with base64, safetensors, npz, or one level as a picture. \
                    Several \
                 images are stacked, except in JSON.",
                Routes::Features,
            )
        },
        Operation {
            parameters: attention,
            body: Some(images(config, false)),
            answer: maps(schemas, true),
            ..post(
                "/v1/attention",
                "attention",
                "The attention of a bottleneck",
                "The gate of its DFC attention, as numbers, or as a picture over what the network saw (`Accept: \
                    image/png`).",
                Routes::Features,
            )
        },
    ]
}

fn model_operations(schemas: &mut Schemas) -> [Operation; 2] {
    [
        Operation {
            errors: vec![Code::InvalidParameter, Code::Overloaded],
            ..Operation::get("/v1/models", "models", "models", "What is served", schemas.answer::<Listing>())
        },
        Operation {
            errors: vec![Code::InvalidParameter, Code::InvalidRequest, Code::UnknownModel, Code::Overloaded],
            ..Operation::get("/v1/models/{id}", "model", "models", "A model in full", schemas.answer::<Details>())
        },
    ]
}

/// The operations about this document.
fn document_operations() -> [Operation; 2] {
    [
        Operation {
            answer: json!({ "application/json": { "schema": { "type": "object" } } }),
            ..Operation::get("/openapi.json", "openapi", "operations", "This document", Value::Null)
        },
        Operation {
            answer: json!({ "text/html": { "schema": { "type": "string" } } }),
            errors: Vec::new(),
            ..Operation::get("/docs", "docs", "operations", "This document, to be read and tried", Value::Null)
        },
    ]
}

/// The operations for operators.
fn admin_operations() -> [Operation; 3] {
    let text = |path, id, summary, errors| Operation {
        answer: json!({ "text/plain": { "schema": { "type": "string" } } }),
        errors,
        ..Operation::get(path, id, "operations", summary, Value::Null)
    };
    [
        text("/metrics", "metrics", "Metrics in Prometheus' text format", Vec::new()),
        text("/livez", "livez", "Whether the event loop turns", Vec::new()),
        text("/readyz", "readyz", "Whether requests should be sent here", vec![Code::NotReady, Code::Draining]),
    ]
}
