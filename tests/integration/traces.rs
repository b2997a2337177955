//! Traces: what arrives at a collector. The collectors here are local and take both of OTLP's transports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
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

/// A caller's span, sampled or not.
fn caller(trace: u8, sampled: bool) -> String {
    format!("00-{}-{}-0{}", format!("{trace:02x}").repeat(16), "cd".repeat(8), u8::from(sampled))
}

/// What has arrived.
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
    /// Listens, and says where.
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

/// A server whose batches wait for company, so that requests which come together run together.
fn server(endpoint: &str, extra: &[&str]) -> (Process, String) {
    let own = ["--otlp-endpoint", endpoint, "--no-calibration", "--workers", "1", "--max-batch", "4"];
    let (process, address, log) = Process::start(&[&own[..], &["--batch-delay", "400ms"], extra].concat());
    // Its log would fill the pipe.
    std::thread::spawn(move || log.for_each(drop));
    (process, format!("http://{address}"))
}

/// The names of a span's children, with theirs, in the order of their starts.
fn tree(spans: &[Span], of: &Span) -> String {
    let mut children: Vec<_> = spans.iter().filter(|span| span.parent_span_id == of.span_id).collect();
    children.sort_by_key(|span| span.start_time_unix_nano);
    let children: Vec<_> = children.into_iter().map(|child| tree(spans, child)).collect();
    if children.is_empty() { of.name.clone() } else { format!("{}({})", of.name, children.join(" ")) }
}

fn named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_several_requests_arrives_whole() {
    let collector = Collector::default();
    let (process, url) = server(&collector.start().await, &["--service-name", "camera"]);
    let client = reqwest::Client::new();
    let ask = |trace: u8| {
        let file = || Part::bytes(JPEG.to_vec()).file_name("x.jpg");
        let form = Form::new().part("a", file()).part("b", file());
        let request = client.post(format!("{url}/v1/classify")).header("traceparent", caller(trace, true));
        request.header("x-request-id", "the-id").multipart(form).send()
    };
    let (one, two) = tokio::join!(ask(0xa1), ask(0xa2));
    let response = one.unwrap();
    assert_eq!([response.status(), two.unwrap().status()], [200, 200]);
    let own = response.headers()["traceresponse"].to_str().unwrap().to_owned();
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
        // The caller's trace goes on.
        assert!([vec![0xa1; 16], vec![0xa2; 16]].contains(trace));
        assert_eq!(request.parent_span_id, [0xcd; 8]);
        let image = "image(wait_for_core decode resize queue infer)";
        assert_eq!(tree(&spans, request), format!("POST /v1/classify(read {image} {image} encode)"));
        let about = attributes(&request.attributes);
        assert_eq!((&about["http.response.status_code"][..], &about["request_id"][..]), ("200", "the-id"));
        for part in spans.iter().filter(|span| &span.trace_id == trace) {
            assert!(part.start_time_unix_nano >= request.start_time_unix_nano, "{part:?}");
            assert!(part.end_time_unix_nano <= request.end_time_unix_nano, "{part:?}");
        }
        // From the request to the batch, and back.
        for infer in named(&spans, "infer").iter().filter(|span| &span.trace_id == trace) {
            assert_eq!((&infer.links[0].trace_id, &infer.links[0].span_id), (&batch.trace_id, &batch.span_id));
        }
        for image in named(&spans, "image").iter().filter(|span| &span.trace_id == trace) {
            assert!(batch.links.iter().any(|link| (&link.trace_id, &link.span_id) == (trace, &image.span_id)));
        }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(requests.iter().any(|r| own == format!("00-{}-{}-01", hex(&r.trace_id), hex(&r.span_id))), "{own}");

    let lost = named(&spans, "GET unmatched");
    let about = attributes(&lost[0].attributes);
    assert_eq!((&about["http.response.status_code"][..], &about["error.type"][..]), ("404", "unknown_route"));
    assert!(!spans.iter().any(|span| span.name.contains("readyz")), "probes are not traced");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_decide_what_is_traced_and_a_batch_goes_with_its_images() {
    let collector = Collector::default();
    let (process, url) = server(&collector.start().await, &["--trace-ratio", "0"]);
    let client = reqwest::Client::new();
    let ask = |parent: Option<String>| {
        let request = client.post(format!("{url}/v1/classify")).body(JPEG.to_vec());
        parent.into_iter().fold(request, |request, parent| request.header("traceparent", parent)).send()
    };
    let answers = tokio::join!(ask(Some(caller(0xa1, true))), ask(Some(caller(0xa2, false))), ask(None));
    for answer in [answers.0, answers.1, answers.2] {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(ask(None).await.unwrap().status(), 200);
    process.stop();

    let spans = collector.spans();
    assert_eq!(named(&spans, "POST /v1/classify").len(), 1);
    // The batch of the sampled request, not that of the others alone.
    assert_eq!(named(&spans, "batch").len(), 1);
    assert!(spans.iter().all(|span| span.trace_id == [0xa1; 16] || span.name == "batch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_traced_and_the_collector_may_speak_grpc() {
    let collector = Collector::default();
    let (process, url) = server(&collector.start().await, &["--otlp-protocol", "grpc"]);
    let mut client = InferenceServiceClient::connect(url).await.unwrap();
    let mut request = Request::new(ClassifyRequest { images: vec![JPEG.into()], ..ClassifyRequest::default() });
    request.metadata_mut().insert("traceparent", caller(0xb1, true).parse().unwrap());
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
async fn a_collector_that_is_not_there_costs_nothing_but_the_traces() {
    let (process, url) = server("http://127.0.0.1:9", &[]);
    let response = reqwest::Client::new().post(format!("{url}/v1/classify")).body(JPEG.to_vec()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    process.stop();

    let (ok, _, err) = run(&["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", "collector:4318"]);
    assert!(!ok && err.contains("--otlp-endpoint") && err.contains("http://collector:4318"), "{err}");
}
