//! Metadata, configuration and statistics of the server and its models. The names of the members are the protocol's
//! and, for configuration and statistics, Triton's.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::{INPUT, NamedModel, PROBABILITIES, VERSION, all};
use crate::runtime::RunCounts;
use crate::server::app::App;
use crate::server::parameters::tensor_name;
use crate::service::TimeCounter;
use ghostserve_ghostnet::{Cut, Output, Size};

/// The extensions of the protocol that are served.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"];
/// A size that may vary.
const ANY: i64 = -1;

/// The server.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct ServerMetadata {
    pub(in crate::server) name: String,
    pub(in crate::server) version: String,
    pub(in crate::server) extensions: Vec<String>,
}

pub(in crate::server) fn server() -> ServerMetadata {
    ServerMetadata {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// A model's inputs and outputs.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct ModelMetadata {
    pub(in crate::server) name: String,
    pub(in crate::server) versions: Vec<String>,
    pub(in crate::server) platform: String,
    pub(in crate::server) inputs: Vec<TensorMetadata>,
    pub(in crate::server) outputs: Vec<TensorMetadata>,
}

/// A tensor.
#[derive(Clone, Serialize, JsonSchema)]
pub(in crate::server) struct TensorMetadata {
    pub(in crate::server) name: String,
    pub(in crate::server) datatype: String,
    /// The images first; -1 where the size may vary.
    pub(in crate::server) shape: Vec<i64>,
}

const PLATFORM: &str = "onnxruntime_onnx";

/// The feature maps and the embedding of a model, in the order of an answer that has all of them.
pub(super) fn feature_outputs(model: &NamedModel) -> Vec<Output> {
    let outputs = model.served.features.as_ref().map(|features| features.network.outputs()).unwrap_or_default();
    let mut outputs: Vec<_> = outputs
        .into_iter()
        .filter(|output| matches!(output, Output::Features { cut: Cut::Deepest, .. } | Output::Embedding))
        .collect();
    outputs.sort_by_key(|output| (*output == Output::Embedding, *output));
    outputs
}

/// Name of each output, and its shape without the images.
fn outputs(model: &NamedModel) -> Vec<(String, Vec<i64>)> {
    let Some(features) = model.served.features.as_ref().filter(|_| model.features) else {
        return vec![(PROBABILITIES.to_owned(), vec![model.served.labels.len() as i64])];
    };
    let [height, width] = model.served.manifest.input.crop;
    let shapes = features.network.shapes(Size { height, width });
    let shape = |output: Output| {
        let shape = shapes.of(output)?.shape;
        // The channels are fixed; height and width depend on the input's size.
        let dims = shape.iter().enumerate().map(|(i, n)| if i == 0 { *n as i64 } else { ANY }).collect();
        Some((tensor_name(output), dims))
    };
    feature_outputs(model).into_iter().filter_map(shape).collect()
}

pub(in crate::server) fn metadata(model: &NamedModel) -> ModelMetadata {
    let tensor = |name: String, datatype: &str, dims: &[i64]| TensorMetadata {
        name,
        datatype: datatype.to_owned(),
        shape: std::iter::once(ANY).chain(dims.iter().copied()).collect(),
    };
    ModelMetadata {
        name: model.name(),
        versions: vec![VERSION.to_owned()],
        platform: PLATFORM.to_owned(),
        inputs: vec![tensor(INPUT.to_owned(), "BYTES", &[1])],
        outputs: outputs(model).into_iter().map(|(name, dims)| tensor(name, "FP32", &dims)).collect(),
    }
}

/// The configuration of a model, in Triton's form.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelConfig")]
pub(in crate::server) struct ModelConfig {
    pub(in crate::server) name: String,
    pub(in crate::server) platform: String,
    pub(in crate::server) backend: String,
    pub(in crate::server) version_policy: VersionPolicy,
    /// Maximum number of images in a request.
    pub(in crate::server) max_batch_size: i32,
    pub(in crate::server) input: Vec<ConfigInput>,
    pub(in crate::server) output: Vec<ConfigOutput>,
    pub(in crate::server) instance_group: Vec<InstanceGroup>,
    pub(in crate::server) default_model_filename: String,
    pub(in crate::server) dynamic_batching: DynamicBatching,
    pub(in crate::server) parameters: BTreeMap<String, ConfigParameter>,
    pub(in crate::server) model_transaction_policy: TransactionPolicy,
}

/// The versions that are served.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct VersionPolicy {
    pub(in crate::server) latest: Latest,
}

/// The newest versions.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct Latest {
    pub(in crate::server) num_versions: u32,
}

/// An input.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct ConfigInput {
    pub(in crate::server) name: String,
    pub(in crate::server) data_type: String,
    pub(in crate::server) format: String,
    /// The shape without the images.
    pub(in crate::server) dims: Vec<i64>,
}

/// An output.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct ConfigOutput {
    pub(in crate::server) name: String,
    pub(in crate::server) data_type: String,
    /// The shape without the images.
    pub(in crate::server) dims: Vec<i64>,
    pub(in crate::server) label_filename: String,
}

/// Sessions that run at the same time.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct InstanceGroup {
    pub(in crate::server) name: String,
    pub(in crate::server) kind: String,
    pub(in crate::server) count: i32,
}

/// How images of several requests become batches.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct DynamicBatching {
    pub(in crate::server) preferred_batch_size: Vec<i32>,
    pub(in crate::server) max_queue_delay_microseconds: u64,
}

/// Another property of the model.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct ConfigParameter {
    pub(in crate::server) string_value: String,
}

/// How many answers a request has.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct TransactionPolicy {
    /// Whether a request can have any number of answers.
    pub(in crate::server) decoupled: bool,
}

pub(in crate::server) fn config(app: &App, model: &NamedModel) -> ModelConfig {
    let plan = &model.served.plan;
    let input = ConfigInput {
        name: INPUT.to_owned(),
        data_type: "TYPE_STRING".to_owned(),
        format: "FORMAT_NONE".to_owned(),
        dims: vec![1],
    };
    let output =
        |(name, dims)| ConfigOutput { name, data_type: "TYPE_FP32".to_owned(), dims, label_filename: String::new() };
    let parameter = |name: &str, value: String| (name.to_owned(), ConfigParameter { string_value: value });
    ModelConfig {
        name: model.name(),
        platform: PLATFORM.to_owned(),
        backend: "onnxruntime".to_owned(),
        version_policy: VersionPolicy { latest: Latest { num_versions: 1 } },
        max_batch_size: i32::try_from(app.config.request.max_images_per_request).unwrap_or(i32::MAX),
        input: vec![input],
        output: outputs(model).into_iter().map(output).collect(),
        instance_group: vec![InstanceGroup {
            name: model.name(),
            kind: "KIND_CPU".to_owned(),
            count: plan.workers as i32,
        }],
        default_model_filename: String::new(),
        dynamic_batching: DynamicBatching {
            preferred_batch_size: vec![plan.max_batch as i32],
            max_queue_delay_microseconds: (plan.batch_delay_ms * 1e3) as u64,
        },
        parameters: BTreeMap::from([
            parameter("digest", model.served.digest.to_string()),
            parameter("architecture", model.served.manifest.network.architecture.to_string()),
        ]),
        model_transaction_policy: TransactionPolicy { decoupled: false },
    }
}

/// Statistics of requests since the start.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct StatisticsAnswer {
    pub(in crate::server) model_stats: Vec<ModelStatistics>,
}

/// Statistics of one model.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelStatistics")]
pub(in crate::server) struct ModelStatistics {
    pub(in crate::server) name: String,
    pub(in crate::server) version: String,
    /// Time of the last answer, milliseconds since 1970.
    pub(in crate::server) last_inference: u64,
    /// Number of images.
    pub(in crate::server) inference_count: u64,
    /// Number of runs of the network.
    pub(in crate::server) execution_count: u64,
    pub(in crate::server) inference_stats: InferenceStatistics,
    pub(in crate::server) batch_stats: Vec<BatchStatistics>,
}

/// Time of requests by stage.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct InferenceStatistics {
    pub(in crate::server) success: Time,
    pub(in crate::server) fail: Time,
    pub(in crate::server) queue: Time,
    /// Decoding and resizing.
    pub(in crate::server) compute_input: Time,
    pub(in crate::server) compute_infer: Time,
    /// Encoding the answer.
    pub(in crate::server) compute_output: Time,
    pub(in crate::server) cache_hit: Time,
    pub(in crate::server) cache_miss: Time,
}

/// Runs of one batch size.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct BatchStatistics {
    pub(in crate::server) batch_size: u64,
    /// Always 0: images are decoded one by one, before they are in a batch.
    pub(in crate::server) compute_input: Time,
    pub(in crate::server) compute_infer: Time,
    /// Always 0: answers are encoded one by one.
    pub(in crate::server) compute_output: Time,
}

/// Number of events, and the sum of their durations in nanoseconds.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub(in crate::server) struct Time {
    pub(in crate::server) count: u64,
    pub(in crate::server) ns: u64,
}

impl From<&TimeCounter> for Time {
    fn from(counter: &TimeCounter) -> Self {
        let (count, ns) = counter.get();
        Self { count, ns }
    }
}

pub(in crate::server) fn statistics(model: &NamedModel) -> ModelStatistics {
    let requests = model.statistics();
    let runs: &RunCounts = if model.features { &model.served.runs.variants } else { &model.served.runs.classifier };
    let runs = runs.by_size();
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    ModelStatistics {
        name: model.name(),
        version: VERSION.to_owned(),
        last_inference: requests.last_answer_ms(),
        inference_count: requests.images(),
        execution_count: runs.iter().map(|(_, count, _)| count).sum(),
        inference_stats: InferenceStatistics {
            success: (&requests.success).into(),
            fail: (&requests.fail).into(),
            queue: (&requests.queue).into(),
            compute_input: (&requests.compute_input).into(),
            compute_infer: (&requests.compute_infer).into(),
            compute_output: (&requests.compute_output).into(),
            cache_hit: Time::default(),
            cache_miss: Time::default(),
        },
        batch_stats: runs
            .into_iter()
            .map(|(size, count, time)| BatchStatistics {
                batch_size: size as u64,
                compute_input: Time { count, ns: 0 },
                compute_infer: Time { count, ns: nanoseconds(time) },
                compute_output: Time { count, ns: 0 },
            })
            .collect(),
    }
}

/// A model in the repository's index.
#[derive(Serialize, JsonSchema)]
pub(in crate::server) struct IndexEntry {
    pub(in crate::server) name: String,
    pub(in crate::server) version: String,
    /// `READY` or `UNAVAILABLE`.
    pub(in crate::server) state: String,
    pub(in crate::server) reason: String,
}

/// The index of all models, or of those that are ready.
pub(in crate::server) fn index(app: &App, ready: bool) -> Vec<IndexEntry> {
    let entry = |model: NamedModel| {
        let (state, reason) = match model.served.is_ready() {
            true => ("READY", ""),
            false => ("UNAVAILABLE", "no worker is ready"),
        };
        let (name, version) = (model.name(), VERSION.to_owned());
        IndexEntry { name, version, state: state.to_owned(), reason: reason.to_owned() }
    };
    all(app).into_iter().filter(|model| !ready || model.served.is_ready()).map(entry).collect()
}
