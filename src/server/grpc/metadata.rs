//! Converts metadata, configuration and statistics of the Open Inference Protocol to messages.

use std::collections::HashMap;

use crate::server::oip;
use ghostserve_proto::inference as proto;

impl From<oip::ModelMetadata> for proto::ModelMetadataResponse {
    fn from(metadata: oip::ModelMetadata) -> Self {
        let to_tensor = |tensor: oip::TensorMetadata| proto::model_metadata_response::TensorMetadata {
            name: tensor.name,
            datatype: tensor.datatype,
            shape: tensor.shape,
        };
        Self {
            name: metadata.name,
            versions: metadata.versions,
            platform: metadata.platform,
            inputs: metadata.inputs.into_iter().map(to_tensor).collect(),
            outputs: metadata.outputs.into_iter().map(to_tensor).collect(),
        }
    }
}

/// Number of a data type. Enumerations have the same names in JSON and in gRPC.
fn data_type(name: &str) -> i32 {
    proto::DataType::from_str_name(name).unwrap_or_default().into()
}

impl From<oip::ModelConfig> for proto::ModelConfig {
    fn from(config: oip::ModelConfig) -> Self {
        use proto::model_input::Format;
        use proto::model_instance_group::Kind;
        use proto::model_version_policy::{Latest, PolicyChoice};
        let to_input = |input: oip::ConfigInput| proto::ModelInput {
            data_type: data_type(&input.data_type),
            format: Format::from_str_name(&input.format).unwrap_or_default().into(),
            name: input.name,
            dims: input.dims,
        };
        let to_output = |output: oip::ConfigOutput| proto::ModelOutput {
            data_type: data_type(&output.data_type),
            name: output.name,
            dims: output.dims,
            label_filename: output.label_filename,
        };
        let to_group = |group: oip::InstanceGroup| proto::ModelInstanceGroup {
            kind: Kind::from_str_name(&group.kind).unwrap_or_default().into(),
            name: group.name,
            count: group.count,
        };
        let to_parameter = |(name, parameter): (String, oip::ConfigParameter)| {
            (name, proto::ModelParameter { string_value: parameter.string_value })
        };
        let latest = Latest { num_versions: config.version_policy.latest.num_versions };
        Self {
            name: config.name,
            platform: config.platform,
            backend: config.backend,
            version_policy: Some(proto::ModelVersionPolicy { policy_choice: Some(PolicyChoice::Latest(latest)) }),
            max_batch_size: config.max_batch_size,
            input: config.input.into_iter().map(to_input).collect(),
            output: config.output.into_iter().map(to_output).collect(),
            instance_group: config.instance_group.into_iter().map(to_group).collect(),
            default_model_filename: config.default_model_filename,
            dynamic_batching: Some(proto::ModelDynamicBatching {
                preferred_batch_size: config.dynamic_batching.preferred_batch_size,
                max_queue_delay_microseconds: config.dynamic_batching.max_queue_delay_microseconds,
            }),
            model_transaction_policy: Some(proto::ModelTransactionPolicy {
                decoupled: config.model_transaction_policy.decoupled,
            }),
            parameters: config.parameters.into_iter().map(to_parameter).collect::<HashMap<_, _>>(),
        }
    }
}

impl From<oip::Time> for proto::StatisticDuration {
    fn from(time: oip::Time) -> Self {
        Self { count: time.count, ns: time.ns }
    }
}

impl From<oip::ModelStatistics> for proto::ModelStatistics {
    fn from(statistics: oip::ModelStatistics) -> Self {
        let times = statistics.inference_stats;
        let to_batch = |batch: oip::BatchStatistics| proto::InferBatchStatistics {
            batch_size: batch.batch_size,
            compute_input: Some(batch.compute_input.into()),
            compute_infer: Some(batch.compute_infer.into()),
            compute_output: Some(batch.compute_output.into()),
        };
        Self {
            name: statistics.name,
            version: statistics.version,
            last_inference: statistics.last_inference,
            inference_count: statistics.inference_count,
            execution_count: statistics.execution_count,
            inference_stats: Some(proto::InferStatistics {
                success: Some(times.success.into()),
                fail: Some(times.fail.into()),
                queue: Some(times.queue.into()),
                compute_input: Some(times.compute_input.into()),
                compute_infer: Some(times.compute_infer.into()),
                compute_output: Some(times.compute_output.into()),
                cache_hit: Some(times.cache_hit.into()),
                cache_miss: Some(times.cache_miss.into()),
            }),
            batch_stats: statistics.batch_stats.into_iter().map(to_batch).collect(),
        }
    }
}
