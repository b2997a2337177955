//! `/v2`: the Open Inference Protocol.

use serde_json::{Value, json};

use super::Schemas;
use super::errors::{MODEL_ERRORS, Routes, image_errors};
use super::operations::{Operation, headers, path_parameters};
use crate::config::Config;
use crate::server::http::oip_rest::{IndexRequest, JsonAnswer, JsonRequest, Live, ModelReady, Ready};
use crate::server::oip::{IndexEntry, ModelConfig, ModelMetadata, ServerMetadata, StatisticsAnswer};
use crate::service::Code;

const TAG: &str = "inference";

pub(super) fn operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let error = json!({
        "type": "object",
        "properties": { "error": { "type": "string" } },
        "required": ["error"],
        "additionalProperties": false,
    });
    let mut operations = server_operations(schemas);
    operations.extend(repository_operations(schemas));
    operations.extend(model_operations(schemas));
    operations.extend(infer_operations(schemas, config));
    for operation in &mut operations {
        operation.error_schema = Some(error.clone());
    }
    operations
}

fn get(path: &'static str, id: &'static str, summary: &'static str, schema: Value, errors: &[Code]) -> Operation {
    Operation { errors: errors.to_vec(), ..Operation::get(path, id, TAG, summary, schema) }
}

fn server_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let only_parameter = &[Code::InvalidParameter][..];
    vec![
        get("/v2", "oipServer", "The server", schemas.answer::<ServerMetadata>(), only_parameter),
        get("/v2/health/live", "oipLive", "Whether the server lives", schemas.answer::<Live>(), &[]),
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
            only_parameter,
        ),
    ]
}

fn repository_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let index = json!({
        "required": false,
        "content": { "application/json": { "schema": schemas.request::<IndexRequest>() } },
    });
    let entries = json!({ "type": "array", "items": schemas.answer::<IndexEntry>() });
    let nothing = json!({ "required": false, "content": { "application/json": { "schema": { "type": "object" } } } });
    let index_errors = [Code::InvalidJson, Code::BodyTooLarge, Code::BodyTimeout];
    let mut operations = vec![Operation {
        method: "post",
        body: Some(index),
        ..get("/v2/repository/index", "oipIndex", "The models", entries, &index_errors)
    }];
    for (path, id) in
        [("/v2/repository/models/{model}/load", "oipLoad"), ("/v2/repository/models/{model}/unload", "oipUnload")]
    {
        // There is no success.
        operations.push(Operation {
            method: "post",
            body: Some(nothing.clone()),
            description: "Models are chosen when the server starts: always refused.",
            ..get(path, id, "Not offered", json!({}), &MODEL_ERRORS)
        });
    }
    operations
}

/// The operations about one model. Each has a path with a version and one without.
fn model_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (paths, ids, summary, schema, errors) in [
        (
            ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"],
            ["oipModel", "oipModelVersion"],
            "A model's inputs and outputs",
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
            "A model's configuration, in Triton's words",
            schemas.answer::<ModelConfig>(),
            MODEL_ERRORS,
        ),
        (
            ["/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats"],
            ["oipStatistics", "oipVersionStatistics"],
            "What became of a model's requests",
            schemas.answer::<StatisticsAnswer>(),
            MODEL_ERRORS,
        ),
    ] {
        operations.extend(std::iter::zip(paths, ids).map(|(path, id)| get(path, id, summary, schema.clone(), &errors)));
    }
    operations
}

fn infer_operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let (request, answer) = (schemas.request::<JsonRequest<'_>>(), schemas.answer::<JsonAnswer<'_>>());
    let length = "inference-header-content-length";
    let mut extra = headers();
    extra.push(json!({
        "name": length, "in": "header", "schema": { "type": "integer", "minimum": 0 },
        "description": "How many bytes of the body are JSON, if tensors follow it.",
    }));
    let body = json!({
        "required": true,
        "description": format!(
            "At most {} bytes and {} images. The input is `image`: BYTES [images, 1] (image files), UINT8 [images, \
                height, width, \
             3] or FP32 [images, 3, height, width].",
            config.request.max_multi_body_bytes, config.request.max_images_per_request
        ),
        "content": {
            "application/json": { "schema": request },
            "application/octet-stream": { "schema": { "type": "string", "contentMediaType": "application/octet-stream" } },
        },
    });
    let answer = json!({ "application/json": { "schema": answer }, "application/octet-stream": {} });
    let paths = ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"];
    let operation = |(path, id): (&'static str, &'static str)| Operation {
        method: "post",
        path,
        id,
        tag: TAG,
        summary: "Run a model on tensors",
        description: "If one image is bad, the request fails and says which.",
        parameters: path_parameters(path).into_iter().chain(extra.iter().cloned()).collect(),
        body: Some(body.clone()),
        answer: answer.clone(),
        errors: image_errors(Routes::Infer),
        error_schema: None,
    };
    std::iter::zip(paths, ["oipInfer", "oipVersionInfer"]).map(operation).collect()
}
