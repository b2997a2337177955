//! gRPC with the clients generated from `proto/`: the same answers and limits as HTTP, and no resources left behind.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use ghostserve_proto::v1;
use ghostserve_proto::v1::classify_result::Outcome;
use ghostserve_proto::v1::inference_service_client::InferenceServiceClient;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use crate::images::{JPEG, drawn_image, png};
use crate::server::TestServer;

async fn channel(server: &TestServer) -> Channel {
    Channel::from_shared(server.url("")).unwrap().connect().await.unwrap()
}

async fn connect(server: &TestServer) -> InferenceServiceClient<Channel> {
    InferenceServiceClient::new(channel(server).await).max_decoding_message_size(usize::MAX)
}

fn request(images: Vec<Vec<u8>>) -> v1::ClassifyRequest {
    v1::ClassifyRequest { images: images.into_iter().map(Bytes::from).collect(), ..v1::ClassifyRequest::default() }
}

/// The problem code in a status's details, the same as over HTTP.
fn reason(status: &Status) -> String {
    status.get_error_details().error_info().unwrap().reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_gets_the_answer_of_http() {
    let server = TestServer::start().await;
    let (_, expected) = server.classify("?top_k=3", JPEG).await;
    let message = v1::ClassifyRequest { top_k: Some(3), ..request(vec![JPEG.to_vec(), b"no image".to_vec()]) };
    let answer = connect(&server).await.classify(message).await.unwrap();
    assert!(answer.metadata().contains_key("x-request-id"));
    let answer = answer.into_inner();
    assert_eq!(answer.model.unwrap().digest, expected["model"]["digest"]);
    let [Some(Outcome::Classification(good)), Some(Outcome::Error(bad))] =
        [&answer.results[0].outcome, &answer.results[1].outcome]
    else {
        panic!("{:?}", answer.results)
    };
    let expected = &expected["results"][0];
    for (found, expected) in good.predictions.iter().zip(expected["predictions"].as_array().unwrap()) {
        assert_eq!(
            (found.class, &found.label[..]),
            (expected["class"].as_u64().unwrap() as u32, expected["label"].as_str().unwrap())
        );
        assert!((f64::from(found.probability) - expected["probability"].as_f64().unwrap()).abs() < 1e-6);
    }
    let image = good.image.as_ref().unwrap();
    assert_eq!((&image.format[..], image.width, image.height), ("jpeg", 96, 80));
    assert_eq!(good.predictions.len(), 3);
    assert_eq!(bad.code, "unsupported_image_format");
    server.settles("ghostserve_grpc_requests_in_flight", 0.0).await;
    server.settles("ghostserve_body_bytes", 0.0).await;
    let counted = "ghostserve_grpc_requests_total{code=\"OK\",method=\"/ghostserve.v1.InferenceService/Classify\"}";
    assert_eq!(server.metric(counted).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_call_carries_the_problem_code_of_http() {
    let server = TestServer::with(|config| config.request.max_multi_body_bytes = 10 << 20).await;
    let mut client = connect(&server).await;
    let large = vec![0; (10 << 20) + 1];
    let many = (0..33).map(|_| JPEG.to_vec()).collect();
    for (message, code, expected) in [
        (request(vec![]), Code::InvalidArgument, "no_image"),
        (request(vec![vec![]]), Code::InvalidArgument, "no_image"),
        (request(vec![JPEG[..200].to_vec()]), Code::InvalidArgument, "undecodable_image"),
        (request(many), Code::InvalidArgument, "too_many_images"),
        (request(vec![large]), Code::ResourceExhausted, "body_too_large"),
        (
            v1::ClassifyRequest { top_k: Some(11), ..request(vec![JPEG.to_vec()]) },
            Code::InvalidArgument,
            "invalid_parameter",
        ),
        (
            v1::ClassifyRequest { min_confidence: 2.0, ..request(vec![JPEG.to_vec()]) },
            Code::InvalidArgument,
            "invalid_parameter",
        ),
        (
            v1::ClassifyRequest { model: "x".to_owned(), ..request(vec![JPEG.to_vec()]) },
            Code::NotFound,
            "unknown_model",
        ),
    ] {
        let status = client.classify(message).await.unwrap_err();
        assert_eq!((status.code(), &reason(&status)[..]), (code, expected), "{status:?}");
        let id = status.get_error_details().request_info().unwrap().request_id.clone();
        assert!(!status.message().is_empty() && !id.is_empty());
    }
    server.settles("ghostserve_body_bytes", 0.0).await;
    let mut invalid = Request::new(request(vec![JPEG.to_vec()]));
    invalid.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(reason(&client.classify(invalid).await.unwrap_err()), "invalid_parameter");
    // The connection still works.
    assert!(client.classify(request(vec![JPEG.to_vec()])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_server_says_when_to_retry() {
    // One request fills the server.
    let server = TestServer::with(|config| {
        config.load.max_images_in_flight = 1;
        config.request.max_images_per_request = 1;
        config.load.max_requests_in_flight = 1;
    })
    .await;
    let (mut sender, receiver) = futures::channel::mpsc::channel::<v1::ClassifyStreamRequest>(1);
    let mut answers = connect(&server).await.classify_stream(receiver).await.unwrap().into_inner();
    let status = connect(&server).await.classify(request(vec![JPEG.to_vec()])).await.unwrap_err();
    assert_eq!((status.code(), &reason(&status)[..]), (Code::ResourceExhausted, "overloaded"));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() >= Duration::from_secs(1));
    // HTTP shares the limit.
    assert_eq!(server.classify("", JPEG).await.0, 429);
    sender.close_channel();
    assert!(answers.message().await.unwrap().is_none());
    server.settles("ghostserve_grpc_requests_in_flight", 0.0).await;
    assert!(connect(&server).await.classify(request(vec![JPEG.to_vec()])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_every_request_and_continues_after_bad_ones() {
    // Far more than the server admits at once: it reads the stream more slowly and sheds nothing.
    let server = TestServer::with(|config| {
        config.load.max_images_in_flight = 4;
        config.request.max_images_per_request = 4;
    })
    .await;
    let requests = futures::stream::iter(0..120u32).map(|i| v1::ClassifyStreamRequest {
        id: i.to_string(),
        request: Some(request(vec![if i % 10 == 3 { b"broken".to_vec() } else { png(i) }])),
    });
    let mut answers = connect(&server).await.classify_stream(requests).await.unwrap().into_inner();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let id: u32 = answer.id.parse().unwrap();
        match answer.outcome.unwrap() {
            v1::classify_stream_response::Outcome::Response(_) => assert_ne!(id % 10, 3),
            v1::classify_stream_response::Outcome::Error(error) => {
                assert_eq!((id % 10, &error.code[..]), (3, "unsupported_image_format"));
            }
        }
        assert!(seen.insert(id), "{id} twice");
    }
    assert_eq!(seen.len(), 120);
    let shed = server.get("/metrics").await.text().await.unwrap();
    assert!(!shed.contains("ghostserve_images_shed_total{"), "{shed}");
    server.settles("ghostserve_body_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_client_that_leaves_is_dropped() {
    let server = TestServer::start().await;
    let large = drawn_image(4000, 3000, 1, image::ImageFormat::Png);
    let mut client = connect(&server).await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, file) = (client.clone(), large.clone());
            tokio::spawn(async move { client.classify(request(vec![file])).await })
        })
        .collect();
    let in_flight = "ghostserve_images_in_flight{model=\"ghostnetv2-cifar10\"}";
    // Not all eight: the first may be finished before the last arrives.
    while server.metric(in_flight).await < 2.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    server.settles(in_flight, 0.0).await;
    server.settles("ghostserve_grpc_requests_in_flight", 0.0).await;
    server.settles("ghostserve_body_bytes", 0.0).await;
    let text = server.get("/metrics").await.text().await.unwrap();
    let dropped =
        text.lines().filter(|line| line.starts_with("ghostserve_images_dropped_total{") && line.contains("cancelled"));
    let dropped: f64 = dropped.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert!(dropped >= 1.0, "{dropped}");

    // A deadline that passes during the call. tonic's client enforces it too; the side that notices it first ends the
    // call.
    let mut hurried = Request::new(request(vec![large]));
    hurried.metadata_mut().insert("grpc-timeout", "3m".parse().unwrap());
    let status = client.classify(hurried).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    server.settles(in_flight, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_is_ended() {
    let server = TestServer::with(|config| config.time.idle_timeout = Duration::from_millis(300)).await;
    let silence = futures::stream::pending::<v1::ClassifyStreamRequest>();
    let mut answers = connect(&server).await.classify_stream(silence).await.unwrap().into_inner();
    let status = answers.message().await.unwrap_err();
    assert_eq!((status.code(), &reason(&status)[..]), (Code::DeadlineExceeded, "body_timeout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_answers_what_it_has_begun_and_ends_streams() {
    let server = TestServer::start().await;
    let requests = futures::stream::iter([v1::ClassifyStreamRequest {
        id: "a".to_owned(),
        request: Some(request(vec![JPEG.to_vec()])),
    }]);
    let mut answers =
        connect(&server).await.classify_stream(requests.chain(futures::stream::pending())).await.unwrap().into_inner();
    let mut health = HealthClient::new(channel(&server).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let serving = |status: ServingStatus| status as i32;
    assert_eq!(watch.message().await.unwrap().unwrap().status, serving(ServingStatus::Serving));
    assert_eq!(answers.message().await.unwrap().unwrap().id, "a");
    server.stop.stop();
    assert_eq!(watch.message().await.unwrap().unwrap().status, serving(ServingStatus::NotServing));
    let status = answers.message().await.unwrap_err();
    assert_eq!((status.code(), &reason(&status)[..]), (Code::Unavailable, "draining"));
    tokio::time::timeout(Duration::from_secs(5), server.running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn feature_maps_equal_those_of_http() {
    use base64::Engine;
    let server = TestServer::start().await;
    let response =
        server.post("/v1/features?levels=c4,embedding&size=96x64&fit=letterbox&normalize=true&top_k=1").body(JPEG);
    let expected: Value = response.send().await.unwrap().json().await.unwrap();
    let expected = &expected["results"][0];
    let features_request = |images: Vec<Vec<u8>>| v1::ExtractFeaturesRequest {
        images: images.into_iter().map(Bytes::from).collect(),
        levels: vec!["embedding".to_owned(), "c4".to_owned()],
        size: Some(v1::Size { width: 96, height: 64 }),
        fit: v1::Fit::Letterbox.into(),
        normalize: true,
        top_k: Some(1),
        ..v1::ExtractFeaturesRequest::default()
    };
    let mut client = connect(&server).await;
    let answer =
        client.extract_features(features_request(vec![b"x".to_vec(), JPEG.to_vec()])).await.unwrap().into_inner();
    for (i, name) in ["c4", "embedding"].iter().enumerate() {
        let (found, expected) = (&answer.tensors[i], &expected["features"][i]);
        assert_eq!((&found.name[..], expected["name"].as_str().unwrap()), (*name, *name));
        let data = base64::engine::general_purpose::STANDARD.decode(expected["data"].as_str().unwrap()).unwrap();
        assert_eq!(found.data, data);
        let shape: Vec<u64> = found.shape[1..].iter().map(|n| u64::from(*n)).collect();
        assert_eq!(serde_json::json!(shape), expected["shape"]);
        assert_eq!(found.shape[0], 1);
    }
    let v1::features_result::Outcome::Error(error) = answer.results[0].outcome.as_ref().unwrap() else { panic!() };
    assert_eq!(error.code, "unsupported_image_format");
    let v1::features_result::Outcome::Features(good) = answer.results[1].outcome.as_ref().unwrap() else { panic!() };
    assert_eq!((good.row, good.predictions.len()), (0, 1));
    let geometry = good.geometry.as_ref().unwrap();
    assert_eq!(geometry.scale_x, expected["geometry"]["scale"][0].as_f64().unwrap());
    assert_eq!(geometry.offset_y, expected["geometry"]["offset"][1].as_f64().unwrap());

    let mut invalid = features_request(vec![JPEG.to_vec()]);
    invalid.size = Some(v1::Size { width: 97, height: 64 });
    assert_eq!(reason(&client.extract_features(invalid).await.unwrap_err()), "invalid_parameter");
    let models = client.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert_eq!((&models[0].id[..], models[0].labels.len(), models[0].levels.len()), ("ghostnetv2-cifar10", 10, 6));
    server.settles("ghostserve_feature_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_and_health_their_status() {
    let server = TestServer::start().await;
    let mut reflection = ServerReflectionClient::new(channel(&server).await);
    let query = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let queries = futures::stream::iter([
        query(MessageRequest::ListServices(String::new())),
        query(MessageRequest::FileContainingSymbol("ghostserve.v1.InferenceService.Classify".to_owned())),
    ]);
    let mut answers = reflection.server_reflection_info(queries).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!()
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["ghostserve.v1.InferenceService", "inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
    let file = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");

    let mut health = HealthClient::new(channel(&server).await);
    for service in ["", "inference.GRPCInferenceService"] {
        let check = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(health.check(check).await.unwrap().into_inner().status, ServingStatus::Serving as i32);
    }
    let unknown = HealthCheckRequest { service: "x".to_owned() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_separate_grpc_port_serves_only_grpc() {
    let server = TestServer::with(|config| config.grpc_listen = Some(([127, 0, 0, 1], 0).into())).await;
    let own = format!("http://{}", server.grpc.unwrap());
    let channel = Channel::from_shared(own.clone()).unwrap().connect().await.unwrap();
    assert!(InferenceServiceClient::new(channel).classify(request(vec![JPEG.to_vec()])).await.is_ok());
    assert_eq!(server.client.get(format!("{own}/livez")).send().await.unwrap().status(), 404);
    // gRPC-Web is not supported.
    let web = server.post("/ghostserve.v1.InferenceService/Classify").header("content-type", "application/grpc-web");
    assert_eq!(web.send().await.unwrap().status(), 404);
}
