//! Operations of `/v2`, the Open Inference Protocol.

use serde_json::{Value, json};

use super::errors::{ImageRoutes, MODEL_ERRORS, image_errors};
use super::operations::{Operation, binary, headers, path_parameters};
use super::schemas::Schemas;
use crate::config::Config;
use crate::server::http::oip_rest::{IndexRequest, JsonAnswer, JsonRequest, Live, ModelReady, Ready};
use crate::server::oip::{IndexEntry, ModelConfig, ModelMetadata, ServerMetadata, StatisticsAnswer};
use crate::service::Code;

/// Tag of all operations of the protocol.
const TAG: &str = "inference";

/// All operations of the protocol.
pub(super) fn operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let error = json!({
        "type": "object",
        "description": "An error of the Open Inference Protocol.",
        "properties": { "error": { "type": "string", "description": "For people: the error, and what to do." } },
        "required": ["error"],
        "additionalProperties": false,
    });
    let error = schemas.name("InferenceError", error);
    let mut operations = server_operations(schemas);
    operations.extend(repository_operations(schemas));
    operations.extend(model_operations(schemas));
    operations.extend(infer_operations(schemas, config));
    for operation in &mut operations {
        operation.error_schema = Some(error.clone());
    }
    operations
}

/// A `GET` operation of the protocol.
fn get(path: &'static str, id: &'static str, summary: &'static str, schema: Value, errors: &[Code]) -> Operation {
    Operation { errors: errors.to_vec(), ..Operation::get(path, id, TAG, summary, schema) }
}

/// Operations about the server.
fn server_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let parameter_error = &[Code::InvalidParameter][..];
    vec![
        get("/v2", "oipServer", "Server metadata", schemas.answer::<ServerMetadata>(), parameter_error),
        get("/v2/health/live", "oipLive", "Whether the process is alive", schemas.answer::<Live>(), &[]),
        get(
            "/v2/health/ready",
            "oipReady",
            "Whether requests should be sent here",
            schemas.answer::<Ready>(),
            &[Code::NotReady, Code::Draining],
        ),
        get(
            "/v2/models/stats",
            "oipAllStatistics",
            "Statistics of all models",
            schemas.answer::<StatisticsAnswer>(),
            parameter_error,
        ),
    ]
}

/// Operations about the model repository.
fn repository_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let index = json!({
        "required": false,
        "content": { "application/json": { "schema": schemas.request::<IndexRequest>() } },
    });
    let entries = json!({ "type": "array", "items": schemas.answer::<IndexEntry>() });
    let any_object =
        json!({ "required": false, "content": { "application/json": { "schema": { "type": "object" } } } });
    let index_errors = [Code::InvalidJson, Code::BodyTooLarge, Code::BodyTimeout];
    let mut operations = vec![Operation {
        method: "post",
        body: Some(index),
        ..get("/v2/repository/index", "oipIndex", "List of the models", entries, &index_errors)
    }];
    for (path, id) in
        [("/v2/repository/models/{model}/load", "oipLoad"), ("/v2/repository/models/{model}/unload", "oipUnload")]
    {
        // No request succeeds.
        operations.push(Operation {
            method: "post",
            body: Some(any_object.clone()),
            description: "Always rejected: models are selected when the server starts.",
            ..get(path, id, "Not supported", json!({}), &MODEL_ERRORS)
        });
    }
    operations
}

/// Operations about one model. Each has a path with a version and one without.
fn model_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (paths, ids, summary, schema, errors) in [
        (
            ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"],
            ["oipModel", "oipModelVersion"],
            "Inputs and outputs of a model",
            schemas.answer::<ModelMetadata>(),
            MODEL_ERRORS,
        ),
        (
            ["/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"],
            ["oipModelReady", "oipModelVersionReady"],
            "Whether a model can be run",
            schemas.answer::<ModelReady>(),
            [Code::InvalidRequest, Code::UnknownModel, Code::NotReady],
        ),
        (
            ["/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config"],
            ["oipConfig", "oipVersionConfig"],
            "Configuration of a model, in Triton's format",
            schemas.answer::<ModelConfig>(),
            MODEL_ERRORS,
        ),
        (
            ["/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats"],
            ["oipStatistics", "oipVersionStatistics"],
            "Statistics of a model's requests",
            schemas.answer::<StatisticsAnswer>(),
            MODEL_ERRORS,
        ),
    ] {
        operations.extend(std::iter::zip(paths, ids).map(|(path, id)| get(path, id, summary, schema.clone(), &errors)));
    }
    operations
}

/// Operations that run a model.
fn infer_operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let (request, answer) = (schemas.request::<JsonRequest<'_>>(), schemas.answer::<JsonAnswer<'_>>());
    let mut header_parameters = headers();
    header_parameters.push(json!({
        "name": "inference-header-content-length", "in": "header", "schema": { "type": "integer", "minimum": 0 },
        "description": "Number of bytes of JSON at the start of the body, if binary tensors follow it.",
    }));
    let body = json!({
        "required": true,
        "description": format!(
            "At most {} bytes and {} images. The input `image` is BYTES [images, 1] (image files), UINT8 [images, \
             height, width, 3] or FP32 [images, 3, height, width].",
            config.request.max_multi_body_bytes, config.request.max_images_per_request
        ),
        "content": {
            "application/json": { "schema": request },
            "application/octet-stream": { "schema": binary() },
        },
    });
    let answer =
        json!({ "application/json": { "schema": answer }, "application/octet-stream": { "schema": binary() } });
    let paths = ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"];
    let operation = |(path, id): (&'static str, &'static str)| Operation {
        method: "post",
        path,
        id,
        tag: TAG,
        summary: "Run a model on tensors",
        description: "If one image is invalid, the request fails. The error names the image.",
        parameters: path_parameters(path).into_iter().chain(header_parameters.iter().cloned()).collect(),
        body: Some(body.clone()),
        answer: answer.clone(),
        errors: image_errors(ImageRoutes::Infer),
        error_schema: None,
    };
    std::iter::zip(paths, ["oipInfer", "oipVersionInfer"]).map(operation).collect()
}
