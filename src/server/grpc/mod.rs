//! The gRPC interface, on the same port as HTTP: `ghostserve.v1`, the Open Inference Protocol, health and reflection.
//! A handler plans the request of its message, calls [`crate::service`] once, and encodes the answer as a message.

mod call;
mod features;
mod health;
mod messages;
mod metadata;
mod meter;
mod oip_grpc;
mod service;
mod stream;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use http::{Request, Version, header};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder;

use super::app::App;
use ghostserve_proto::DESCRIPTORS;
use ghostserve_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use ghostserve_proto::v1::inference_service_server::InferenceServiceServer;
use wire::Schema;

/// The methods that run the network: they count against the requests in flight.
const WORK: [&str; 5] = ["Classify", "ClassifyStream", "ExtractFeatures", "ModelInfer", "ModelStreamInfer"];

/// The state of the handlers.
#[derive(Clone)]
struct Grpc {
    app: App,
    methods: Arc<HashMap<String, Method>>,
    schema: Arc<Schema>,
}

/// A method of a service.
#[derive(Clone, Debug)]
struct Method {
    /// `/package.Service/Method`.
    name: Arc<str>,
    /// Whether it is one of [`WORK`].
    works: bool,
    /// Whether the client can send any number of messages.
    streams: bool,
    /// Index of the type of its messages in the schema.
    message: usize,
}

impl Method {
    /// Whether it is for probes, which come every few seconds.
    fn is_probe(&self) -> bool {
        self.name.starts_with("/grpc.health.")
            || self.name.ends_with("/ServerLive")
            || self.name.ends_with("/ServerReady")
    }
}

/// Whether a request is a gRPC call. Both protocols share a port, so its content type decides. gRPC-Web is another
/// protocol.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    request.version() == Version::HTTP_2 && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// An error in the descriptors of the services: a mistake in `proto/`.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The descriptors cannot be decoded.
    #[error("cannot read the services' descriptors: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The descriptors contradict each other.
    #[error("cannot describe the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A router with all services, for requests that [`is_call`] accepts.
pub(super) fn router(app: &App) -> Result<Router, DescriptorError> {
    let sets = [
        DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let sets = sets.into_iter().map(FileDescriptorSet::decode).collect::<Result<Vec<_>, _>>()?;
    let schema = Schema::of(&sets);
    let methods = methods_of(&sets, &schema).collect();
    let grpc = Grpc { app: app.clone(), methods: Arc::new(methods), schema: Arc::new(schema) };
    let described = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // `meter` compares messages with the server's limit while they arrive.
    let (read, write) = (usize::MAX, usize::MAX);
    let own =
        InferenceServiceServer::new(grpc.clone()).max_decoding_message_size(read).max_encoding_message_size(write);
    let open = GrpcInferenceServiceServer::new(grpc.clone());
    let routes = Routes::new(own)
        .add_service(open.max_decoding_message_size(read).max_encoding_message_size(write))
        .add_service(HealthServer::new(grpc.clone()))
        .add_service(described().build_v1()?)
        .add_service(described().build_v1alpha()?);
    Ok(routes.into_axum_router().layer(from_fn_with_state(grpc, call::call_middleware)))
}

/// The methods of all services, by path.
fn methods_of<'a>(sets: &'a [FileDescriptorSet], schema: &'a Schema) -> impl Iterator<Item = (String, Method)> {
    let files = sets.iter().flat_map(|set| &set.file);
    let services = files.flat_map(|file| file.service.iter().map(move |service| (file, service)));
    services.flat_map(move |(file, service)| {
        service.method.iter().filter_map(move |method| {
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            let works = WORK.contains(&method.name());
            let streams = method.client_streaming();
            let message = schema.message(method.input_type())?;
            Some((path.clone(), Method { name: path.into(), works, streams, message }))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_recognised_by_their_content_type() {
        let of = |version, kind: &str| {
            let request = Request::builder().version(version).header(header::CONTENT_TYPE, kind).body(());
            request.is_ok_and(|request| is_call(&request))
        };
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(of(Version::HTTP_2, kind), "{kind}");
            assert!(!of(Version::HTTP_11, kind), "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpc-web+proto", "application/json", ""] {
            assert!(!of(Version::HTTP_2, kind), "{kind}");
        }
    }
}
