//! Traces as they arrive at a collector. The collectors are local and accept both of OTLP's transports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use ghostserve_manifest::to_hex;
use ghostserve_proto::v1::ClassifyRequest;
use ghostserve_proto::v1::inference_service_client::InferenceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::multipart::{Form, Part};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::cli::{Process, run};
use crate::images::JPEG;

/// The `traceparent` header of a caller, sampled or not.
fn traceparent(trace: u8, sampled: bool) -> String {
    format!("00-{}-{}-0{}", to_hex(&[trace; 16]), to_hex(&[0xcd; 8]), u8::from(sampled))
}

/// A collector that stores the requests it receives.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a free port and returns its URL.
    async fn start(&self) -> String {
        async fn export(State(collector): State<Collector>, body: Bytes) {
            collector.0.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        }
        let calls = tonic::service::Routes::new(TraceServiceServer::new(self.clone())).into_axum_router();
        let posts = Router::new().route("/v1/traces", post(export)).with_state(self.clone());
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(socket, posts.merge(calls)).await });
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let scopes = requests.iter().flat_map(|request| &request.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn service(&self) -> String {
        let requests = self.0.lock().unwrap();
        let resource = requests[0].resource_spans[0].resource.clone().unwrap();
        attributes(&resource.attributes).remove("service.name").unwrap()
    }
}

fn attributes(all: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    all.iter().map(|a| (a.key.clone(), text(a.value.as_ref().unwrap().value.as_ref().unwrap()))).collect()
}

/// A server that delays its batches, so that requests which arrive together run in one batch.
fn server(endpoint: &str, extra: &[&str]) -> (Process, String) {
    let arguments = ["--otlp-endpoint", endpoint, "--no-calibration", "--workers", "1", "--max-batch", "4"];
    let (process, address, log) = Process::start(&[&arguments[..], &["--batch-delay", "400ms"], extra].concat());
    // An unread log would fill the pipe.
    std::thread::spawn(move || log.for_each(drop));
    (process, format!("http://{address}"))
}

/// The names of a span and its descendants, children in the order of their starts.
fn tree(spans: &[Span], parent: &Span) -> String {
    let mut children: Vec<_> = spans.iter().filter(|span| span.parent_span_id == parent.span_id).collect();
    children.sort_by_key(|span| span.start_time_unix_nano);
    let children: Vec<_> = children.into_iter().map(|child| tree(spans, child)).collect();
    if children.is_empty() { parent.name.clone() } else { format!("{}({})", parent.name, children.join(" ")) }
}

fn named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_several_requests_is_traced_completely() {
    let collector = Collector::default();
    let (process, url) = server(&collector.start().await, &["--service-name", "camera"]);
    let client = reqwest::Client::new();
    let send = |trace: u8| {
        let file = || Part::bytes(JPEG.to_vec()).file_name("x.jpg");
        let form = Form::new().part("a", file()).part("b", file());
        let request = client.post(format!("{url}/v1/classify")).header("traceparent", traceparent(trace, true));
        request.header("x-request-id", "the-id").multipart(form).send()
    };
    let (one, two) = tokio::join!(send(0xa1), send(0xa2));
    let response = one.unwrap();
    assert_eq!([response.status(), two.unwrap().status()], [200, 200]);
    let traceresponse = response.headers()["traceresponse"].to_str().unwrap().to_owned();
    assert_eq!(client.get(format!("{url}/v1/nothing")).send().await.unwrap().status(), 404);
    assert_eq!(client.get(format!("{url}/readyz")).send().await.unwrap().status(), 200);
    process.stop();

    assert_eq!(collector.service(), "camera");
    let spans = collector.spans();
    let requests = named(&spans, "POST /v1/classify");
    assert_eq!(requests.len(), 2);
    let batches = named(&spans, "batch");
    assert_eq!(batches.len(), 1, "{batches:?}");
    let batch = batches[0];
    assert!(batch.parent_span_id.is_empty());
    assert_eq!(attributes(&batch.attributes)["batch.size"], "4");
    assert_eq!(batch.links.len(), 4);

    for (request, trace) in requests.iter().map(|r| (r, &r.trace_id)) {
        // The caller's trace continues.
        assert!([vec![0xa1; 16], vec![0xa2; 16]].contains(trace));
        assert_eq!(request.parent_span_id, [0xcd; 8]);
        let image = "image(wait_for_core decode resize queue infer)";
        assert_eq!(tree(&spans, request), format!("POST /v1/classify(read {image} {image} encode)"));
        let request_attributes = attributes(&request.attributes);
        assert_eq!(
            (&request_attributes["http.response.status_code"][..], &request_attributes["request_id"][..]),
            ("200", "the-id")
        );
        for part in spans.iter().filter(|span| &span.trace_id == trace) {
            assert!(part.start_time_unix_nano >= request.start_time_unix_nano, "{part:?}");
            assert!(part.end_time_unix_nano <= request.end_time_unix_nano, "{part:?}");
        }
        // The request links to the batch, and the batch to the request.
        for infer in named(&spans, "infer").iter().filter(|span| &span.trace_id == trace) {
            assert_eq!((&infer.links[0].trace_id, &infer.links[0].span_id), (&batch.trace_id, &batch.span_id));
        }
        for image in named(&spans, "image").iter().filter(|span| &span.trace_id == trace) {
            assert!(batch.links.iter().any(|link| (&link.trace_id, &link.span_id) == (trace, &image.span_id)));
        }
    }
    assert!(
        requests.iter().any(|r| traceresponse == format!("00-{}-{}-01", to_hex(&r.trace_id), to_hex(&r.span_id))),
        "{traceresponse}"
    );

    let unmatched = named(&spans, "GET unmatched");
    let unmatched_attributes = attributes(&unmatched[0].attributes);
    assert_eq!(
        (&unmatched_attributes["http.response.status_code"][..], &unmatched_attributes["error.type"][..]),
        ("404", "unknown_route")
    );
    assert!(!spans.iter().any(|span| span.name.contains("readyz")), "probes are not traced");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_decide_what_is_traced_and_a_batch_follows_its_images() {
    let collector = Collector::default();
    let (process, url) = server(&collector.start().await, &["--trace-ratio", "0"]);
    let client = reqwest::Client::new();
    let send = |parent: Option<String>| {
        let request = client.post(format!("{url}/v1/classify")).body(JPEG.to_vec());
        parent.into_iter().fold(request, |request, parent| request.header("traceparent", parent)).send()
    };
    let answers = tokio::join!(send(Some(traceparent(0xa1, true))), send(Some(traceparent(0xa2, false))), send(None));
    for answer in [answers.0, answers.1, answers.2] {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(send(None).await.unwrap().status(), 200);
    process.stop();

    let spans = collector.spans();
    assert_eq!(named(&spans, "POST /v1/classify").len(), 1);
    // Only the batch with the sampled request; a batch of the others alone is not traced.
    assert_eq!(named(&spans, "batch").len(), 1);
    assert!(spans.iter().all(|span| span.trace_id == [0xa1; 16] || span.name == "batch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_are_traced_and_the_collector_may_use_grpc() {
    let collector = Collector::default();
    let (process, url) = server(&collector.start().await, &["--otlp-protocol", "grpc"]);
    let mut client = InferenceServiceClient::connect(url).await.unwrap();
    let mut request = Request::new(ClassifyRequest { images: vec![JPEG.into()], ..ClassifyRequest::default() });
    request.metadata_mut().insert("traceparent", traceparent(0xb1, true).parse().unwrap());
    let answer = client.classify(request).await.unwrap();
    assert!(answer.metadata().get("traceresponse").is_some());
    drop(client);
    process.stop();

    let spans = collector.spans();
    let name = "ghostserve.v1.InferenceService/Classify";
    let call = named(&spans, name)[0];
    assert_eq!((&call.trace_id[..], &call.parent_span_id[..]), (&[0xb1; 16][..], &[0xcd; 8][..]));
    let image = "image(wait_for_core decode resize queue infer)";
    assert_eq!(tree(&spans, call), format!("{name}(read {image} encode)"));
    assert_eq!(attributes(&call.attributes)["rpc.grpc.status_code"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_collector_does_not_affect_requests() {
    let (process, url) = server("http://127.0.0.1:9", &[]);
    let response = reqwest::Client::new().post(format!("{url}/v1/classify")).body(JPEG.to_vec()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    process.stop();

    let (ok, _, err) = run(&["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", "collector:4318"]);
    assert!(!ok && err.contains("--otlp-endpoint") && err.contains("http://collector:4318"), "{err}");
}
