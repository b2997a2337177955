//! `/v2`: the Open Inference Protocol.

use serde_json::{Value, json};

use super::Schemas;
use super::operations::{Operation, headers, path_parameters};
use crate::config::Config;
use crate::server::http::inference::{IndexRequest, JsonAnswer, JsonRequest, Live, ModelReady, Ready};
use crate::server::oip::{Config as ModelConfig, IndexEntry, ModelMetadata, ServerMetadata, StatisticsAnswer};
use crate::service::Code;

const INFER_ERRORS: &[Code] = &[
    Code::InvalidParameter,
    Code::InvalidJson,
    Code::InvalidBase64,
    Code::InvalidRequest,
    Code::NoImage,
    Code::UnknownModel,
    Code::BodyTimeout,
    Code::BodyTooLarge,
    Code::TooManyImages,
    Code::ImageTooLarge,
    Code::FeaturesTooLarge,
    Code::UnsupportedMediaType,
    Code::UnsupportedImageFormat,
    Code::UndecodableImage,
    Code::Overloaded,
    Code::NotReady,
    Code::Draining,
];
const MODEL_ERRORS: &[Code] = &[Code::InvalidParameter, Code::InvalidRequest, Code::UnknownModel];
const TAG: &str = "inference";

pub(super) fn operations(schemas: &mut Schemas, config: &Config) -> Vec<Operation> {
    let error = json!({
        "type": "object",
        "properties": { "error": { "type": "string" } },
        "required": ["error"],
        "additionalProperties": false,
    });
    let get = |path, id, summary, schema, errors| Operation {
        errors,
        error_schema: Some(error.clone()),
        ..Operation::get(path, id, (TAG, summary), schema)
    };
    let post = |path, id, (summary, body, answer), errors| Operation {
        method: "post",
        body: Some(body),
        ..get(path, id, summary, answer, errors)
    };
    let (metadata, ready) = (schemas.answer::<ModelMetadata>(), schemas.answer::<ModelReady>());
    let (settings, statistics) = (schemas.answer::<ModelConfig>(), schemas.answer::<StatisticsAnswer>());
    let index = json!({
        "required": false,
        "content": { "application/json": { "schema": schemas.request::<IndexRequest>() } },
    });
    let entries = json!({ "type": "array", "items": schemas.answer::<IndexEntry>() });
    let nothing = json!({ "required": false, "content": { "application/json": { "schema": { "type": "object" } } } });
    let live = get("/v2/health/live", "oipLive", "Whether the server lives", schemas.answer::<Live>(), &[]);
    let server_ready = get(
        "/v2/health/ready",
        "oipReady",
        "Whether requests should be sent here",
        schemas.answer::<Ready>(),
        &[Code::NotReady, Code::Draining],
    );
    let server = schemas.answer::<ServerMetadata>();
    let ready_errors = &[Code::InvalidRequest, Code::UnknownModel, Code::NotReady];
    let mut operations = vec![
        get("/v2", "oipServer", "The server", server, &[Code::InvalidParameter]),
        live,
        server_ready,
        get(
            "/v2/models/stats",
            "oipAllStatistics",
            "Statistics of all models",
            statistics.clone(),
            &[Code::InvalidParameter],
        ),
        post(
            "/v2/repository/index",
            "oipIndex",
            ("The models", index, entries),
            &[Code::InvalidJson, Code::BodyTooLarge, Code::BodyTimeout],
        ),
    ];
    for (path, id) in
        [("/v2/repository/models/{model}/load", "oipLoad"), ("/v2/repository/models/{model}/unload", "oipUnload")]
    {
        // There is no success.
        operations.push(Operation {
            description: "Models are chosen when the server starts: always refused.",
            ..post(path, id, ("Not offered", nothing.clone(), json!({})), MODEL_ERRORS)
        });
    }
    // Every model's routes are there with a version and without.
    for (paths, ids, summary, schema, errors) in [
        (
            ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"],
            ["oipModel", "oipModelVersion"],
            "A model's inputs and outputs",
            metadata,
            MODEL_ERRORS,
        ),
        (
            ["/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"],
            ["oipModelReady", "oipModelVersionReady"],
            "Whether a model can be run",
            ready,
            &ready_errors[..],
        ),
        (
            ["/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config"],
            ["oipConfig", "oipVersionConfig"],
            "A model's configuration, in Triton's words",
            settings,
            MODEL_ERRORS,
        ),
        (
            ["/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats"],
            ["oipStatistics", "oipVersionStatistics"],
            "What became of a model's requests",
            statistics,
            MODEL_ERRORS,
        ),
    ] {
        operations.extend(std::iter::zip(paths, ids).map(|(path, id)| get(path, id, summary, schema.clone(), errors)));
    }
    operations.extend(infer(schemas, config, &error));
    operations
}

fn infer(schemas: &mut Schemas, config: &Config, error: &Value) -> Vec<Operation> {
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
            "At most {} bytes and {} images. The input is `image`: BYTES [images, 1] (image files), UINT8 [images, height, width, \
             3] or FP32 [images, 3, height, width].",
            config.request.max_multi_body, config.request.max_images
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
        errors: INFER_ERRORS,
        error_schema: Some(error.clone()),
    };
    std::iter::zip(paths, ["oipInfer", "oipVersionInfer"]).map(operation).collect()
}
