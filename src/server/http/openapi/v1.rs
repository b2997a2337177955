//! Operations of `/v1`, of the document, and of the endpoints for operators.

use serde_json::{Value, json};

use super::errors::{ImageRoutes, image_errors};
use super::operations::{Operation, binary, headers};
use super::schemas::Schemas;
use crate::config::Config;
use crate::preprocess::{Geometry, ImageInfo};
use crate::server::http::answers::{ImageFailure, ModelRef};
use crate::server::http::classify::{ClassifyAnswer, ClassifyParameters};
use crate::server::http::features::{AttentionParameters, FeatureParameters, Layer};
use crate::server::http::models::{Details, Listing};
use crate::server::tensors::ElementType;
use crate::service::{Code, Prediction};

/// Request body with one or several images.
fn image_body(schemas: &mut Schemas, config: &Config, several: bool) -> Value {
    let (max_images, form, json) = match several {
        true => (config.request.max_images_per_request, "ImagesForm", "ImagesJson"),
        false => (1, "SingleImageForm", "SingleImageJson"),
    };
    let mut body = |name: &str, description: &str, items: Value, more: bool| {
        let images = json!({
            "type": "array", "description": description, "items": items, "minItems": 1, "maxItems": max_images,
        });
        let mut schema = json!({ "type": "object", "properties": { "images": images }, "required": ["images"] });
        if !more {
            schema["additionalProperties"] = false.into();
        }
        schemas.name(name, schema)
    };
    let text = json!({ "type": "string", "contentEncoding": "base64" });
    let form = body(form, "Each file part is an image. The name of a part is ignored.", binary(), true);
    let json = body(json, "Files as base64, or as base64 data URLs.", text, false);
    // Generators reject the media type `image/*`, or send those characters as the type.
    json!({
        "required": true,
        "description": format!(
            "Image files: JPEG, PNG, WebP, GIF, BMP or TIFF. The first bytes of a file determine its format, so \
             `application/octet-stream` and any `image/` type are the same. Maximum size of a single file: {} bytes, \
             of a form or JSON: {} bytes.",
            config.request.max_body_bytes, config.request.max_multi_body_bytes
        ),
        "content": {
            "application/octet-stream": { "schema": binary() },
            "multipart/form-data": { "schema": form },
            "application/json": { "schema": json },
        },
    })
}

/// Schema of the outcome for one image of an answer with maps: maps, or an error.
fn image_maps(schemas: &mut Schemas) -> Value {
    let tensor = json!({
        "type": "object",
        "description": "A tensor of one image.",
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
        "description": "The maps of one image.",
        "properties": {
            "image": schemas.answer::<ImageInfo>(),
            "geometry": schemas.answer::<Geometry>(),
            "predictions": { "type": "array", "items": schemas.answer::<Prediction>() },
            "features": { "type": "array", "items": schemas.name("FeatureTensor", tensor) },
        },
        "required": ["image", "geometry", "features"],
    });
    let (success, failure) = (schemas.name("ImageFeatures", success), schemas.answer::<ImageFailure>());
    schemas.name("FeatureOutcome", json!({ "anyOf": [success, failure] }))
}

/// Content of an answer with maps. Handlers write its JSON without a type, so its schema is written here.
fn map_content(schemas: &mut Schemas, attention: bool) -> Value {
    let outcome = image_maps(schemas);
    let mut schema = json!({
        "type": "object",
        "properties": {
            "model": schemas.answer::<ModelRef<'_>>(),
            "results": { "type": "array", "description": "One outcome per image, in order.", "items": outcome },
        },
        "required": ["model", "results"],
    });
    if attention {
        let layer = schemas.answer::<Layer>();
        schema["properties"]["layer"] = json!({ "type": "string", "description": "The bottleneck of this answer." });
        schema["properties"]["layers"] =
            json!({ "type": "array", "items": layer, "description": "The bottlenecks with DFC attention." });
        schema["required"] = json!(["model", "layer", "layers", "results"]);
    }
    let schema = schemas.name(if attention { "AttentionMaps" } else { "FeatureMaps" }, schema);
    json!({
        "application/json": { "schema": schema },
        "application/vnd.safetensors": { "schema": binary() },
        "application/x-npz": { "schema": binary() },
        "image/png": { "schema": binary() },
    })
}

/// Operations on images, then on models.
pub(super) fn image_and_model_operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let mut operations = Vec::from(image_operations(schemas, config));
    operations.extend(model_operations(schemas));
    operations
}

/// Operations for operators, and those that return the document.
pub(super) fn operator_operations(config: &Config) -> Vec<Operation> {
    let mut operations = Vec::from(document_operations());
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
    let several_images = image_body(schemas, config, true);
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
            body: Some(several_images.clone()),
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
            body: Some(several_images),
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
            body: Some(image_body(schemas, config, false)),
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
