//! The load tester, against servers that misbehave in known ways.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ghostserve_loadtest::report::Statistic;
use ghostserve_loadtest::{
    CampaignEvent, CampaignPlan, ImageSet, LoadTarget, PreparedEndpoint, RequestErrorKind, RequestFormat,
    RunMeasurement, RunObserver, RunSettings, Workload, measure, run_campaign,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
const SHED: &str = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}";
const SHED_AND_CLOSE: &str = "HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What the fake server does with one request.
#[derive(Clone, Copy)]
enum Reaction {
    /// Reads the whole request and sends this answer.
    Answer(&'static str),
    /// Sends this answer after the head, and closes with the body unread.
    Early(&'static str),
    /// Closes without an answer.
    Close,
    /// Answers after this time; with one connection, all other requests wait.
    Stall(Duration),
}

/// Starts a server that handles request number `n` as `reaction_to(n)` says.
async fn fake(reaction_to: fn(usize) -> Reaction) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, reaction_to, Arc::clone(&count)));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, reaction_to: fn(usize) -> Reaction, count: Arc<AtomicUsize>) {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let reaction = reaction_to(count.fetch_add(1, Ordering::Relaxed));
        if let Reaction::Early(answer) = reaction {
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        let whole = head + length.parse::<usize>().unwrap();
        while bytes.len() < whole {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        bytes.drain(..whole);
        match reaction {
            Reaction::Answer(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            Reaction::Close | Reaction::Early(_) => return,
            Reaction::Stall(time) => {
                tokio::time::sleep(time).await;
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        }
    }
}

fn settings() -> RunSettings {
    RunSettings {
        duration: Duration::from_millis(400),
        warm_up: Duration::from_millis(50),
        timeout: Duration::from_secs(2),
        slo: Duration::from_millis(100),
        max_connections: 64,
        seed: 1,
        obey_retry_after: false,
        check_json: true,
    }
}

/// One run against a fake server, on a single-threaded runtime as in the program.
async fn run(reaction_to: fn(usize) -> Reaction, workload: Workload, settings: RunSettings) -> RunMeasurement {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, vec![7; 600_000]).unwrap();
    let images = ImageSet::read(&[path]).unwrap();
    let address = fake(reaction_to).await;
    let target = LoadTarget::parse(&format!("fake=http://{address}/classify")).unwrap();
    let task = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let patience = Duration::from_secs(2);
            let endpoint =
                PreparedEndpoint::prepare(target, &images, &RequestFormat::default(), patience).await.unwrap();
            let plan = CampaignPlan {
                workloads: vec![workload],
                rounds: 1,
                search: false,
                slo_percentile: 99.0,
                settings,
                images: images.description(),
            };
            let ignore = |_: CampaignEvent<'_>| ();
            run_campaign(&[Arc::new(endpoint)], &plan, &CancellationToken::new(), &ignore).await.unwrap()
        })
    };
    let report = tokio::task::spawn_blocking(task).await.unwrap();
    report.targets[0].series[0].rounds[0].clone()
}

/// Time that the stalling server waits before it answers.
const STALL: Duration = Duration::from_millis(300);

const CLOSED: Workload = Workload::ClosedLoop { connections: 4 };

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_counted_by_status_and_refusals_separately() {
    let found = run(|n| Reaction::Answer(if n % 2 == 0 { OK } else { SHED }), CLOSED, settings()).await;
    let counts: Vec<u16> = found.statuses.keys().copied().collect();
    assert_eq!((counts, found.errors.len()), (vec![200, 429], 0));
    assert_eq!(found.success.count(), found.statuses[&200]);
    assert_eq!(found.rejected.count(), found.statuses[&429]);
    assert!(found.success.count() > 10);
    assert!(found.throughput() > 10.0 && found.goodput() <= found.throughput());
    assert!((Statistic::Failures.of(&found) - 50.0).abs() < 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_refusal_counts_as_an_answer_even_if_the_body_could_not_be_sent() {
    let reaction_to = |n| if n % 2 == 0 { Reaction::Answer(OK) } else { Reaction::Early(SHED_AND_CLOSE) };
    let found = run(reaction_to, CLOSED, settings()).await;
    let early = found.statuses.get(&503).copied().unwrap_or(0);
    assert!(early > 5, "{:?}", found.statuses);
    // The system may discard an answer that was not read in time; most answers must arrive.
    let reset = found.errors.values().sum::<u64>();
    assert!(reset * 2 <= early, "{:?} {:?}", found.statuses, found.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_connections_count_as_errors_and_are_opened_again() {
    let found = run(|n| if n % 3 == 2 { Reaction::Close } else { Reaction::Answer(OK) }, CLOSED, settings()).await;
    assert!(found.errors[&RequestErrorKind::Reset] > 3, "{:?}", found.errors);
    assert!(found.success.count() > found.errors[&RequestErrorKind::Reset]);
    assert!(found.connections_opened > 4);
    assert!(found.first_errors[&RequestErrorKind::Reset].contains("without an answer"), "{:?}", found.first_errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_json_is_an_error_where_json_is_expected() {
    let reaction_to = |n| Reaction::Answer(if n == 0 { OK } else { "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno" });
    let found = run(reaction_to, CLOSED, settings()).await;
    assert_eq!((found.success.count(), found.errors.len()), (0, 1));
    assert!(found.errors[&RequestErrorKind::Body] > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_delayed_by_a_stall_are_timed_from_when_they_were_due() {
    // One connection, and one stall that begins inside the measured window. A load tester that waited for the stall to
    // end would see one slow answer.
    let reaction_to: fn(usize) -> Reaction = |n| if n == 20 { Reaction::Stall(STALL) } else { Reaction::Answer(OK) };
    let settings = RunSettings { max_connections: 1, duration: Duration::from_millis(900), ..settings() };
    let found = run(reaction_to, Workload::OpenLoop { arrival_rate: 100.0 }, settings).await;
    let slow: u64 = found.success.buckets().iter().filter(|(time, _)| *time > STALL / 3).map(|(_, count)| count).sum();
    assert!(slow >= 8, "{slow} of {} requests were slow", found.success.count());
    assert!(found.queued >= 8);
    assert!(found.success.max() >= STALL * 9 / 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_writes_its_reports_and_fails_when_an_expectation_is_not_met() {
    let address = fake(|_| Reaction::Answer(OK)).await;
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("r.json"), folder.path().join("r.html"));
    let bench = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ghostserve"));
        command.args(["bench", &format!("one=http://{address}/"), "--duration", "200ms", "--warm-up", "10ms"]);
        command.args(args);
        command
    };
    let two = format!("two=http://{address}/other");
    let (json_name, html_name) = (json.to_str().unwrap().to_owned(), html.to_str().unwrap().to_owned());
    let measured = [&two, "--rounds", "2", "--rates", "50,100"];
    let written = ["--json", &json_name, "--html", &html_name, "--header", "authorization: Bearer s3cret"];
    let args = [&measured[..], &written].concat();
    let mut command = bench(&args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("open loop, 100.0 requests/s") && text.contains("÷ the first"), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["targets"][1]["loads"][1]["rounds"].as_array().map(Vec::len), Some(2));
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("<svg"));
    // Both state when and how they were made, and no credentials.
    let started = report["started"].as_str().unwrap();
    assert!(started.starts_with("20") && started.ends_with('Z'), "{started}");
    assert!(report["command"].as_str().unwrap().starts_with("ghostserve bench one="), "{}", report["command"]);
    assert!(report["machine"]["cores"].as_u64().unwrap() >= 1 && report["targets"][0]["server"].is_null());
    assert!(page.contains(&started[..10]) && page.contains("authorization: …"));
    for output in [&text, &page, &report.to_string()] {
        assert!(!output.contains("s3cret"), "{output}");
    }

    let mut command = bench(&["--expect-p99", "0.001ms"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected a p99 of at most"));
}

/// Measures one target in a closed loop.
async fn measured(target: &str, style: RequestFormat) -> Result<RunMeasurement, String> {
    let (target, settings) = (LoadTarget::parse(target).unwrap(), settings());
    tokio::task::spawn_blocking(move || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let patience = Duration::from_secs(5);
            let endpoint = PreparedEndpoint::prepare(target, &ImageSet::built_in(), &style, patience).await;
            let endpoint = Arc::new(endpoint.map_err(|e| e.to_string())?);
            let observer = RunObserver { on_progress: &|_| (), stop: CancellationToken::new() };
            measure(&endpoint, Workload::ClosedLoop { connections: 4 }, &settings, &observer)
                .await
                .map_err(|e| e.to_string())
        })
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_are_measured_alone_and_mixed_with_http() {
    let server = crate::server::TestServer::start().await;
    let calls = "ghostserve_grpc_requests_total{code=\"OK\",method=\"/ghostserve.v1.InferenceService/Classify\"}";
    let requests = "ghostserve_http_requests_total{route=\"/v1/classify\",status=\"200\"}";
    let grpc = format!("grpc://{}", server.address);
    let alone = measured(&grpc, RequestFormat::default()).await.unwrap();
    assert!(alone.success.count() > 10 && alone.failures() == 0, "{:?}", alone.first_errors);
    let before = server.metric(calls).await;
    assert!(before > 10.0 && server.metric(requests).await == 0.0);
    let mix = format!("mix=http://{}/v1/classify+{grpc}", server.address);
    let mixed = measured(&mix, RequestFormat::default()).await.unwrap();
    assert!(mixed.success.count() > 10 && mixed.failures() == 0, "{:?}", mixed.first_errors);
    assert!(server.metric(calls).await > before + 5.0 && server.metric(requests).await > 5.0);
    // A target that cannot be measured is refused before the run.
    let form = RequestFormat { multipart: Some("file".to_owned()), ..RequestFormat::default() };
    assert!(measured(&grpc, form).await.unwrap_err().contains("--multipart"));
    let late = RequestFormat { headers: vec!["grpc-timeout: 1n".to_owned()], ..RequestFormat::default() };
    let refused = measured(&grpc, late).await.unwrap_err();
    assert!(refused.contains("504"), "{refused}");
    let unknown_method = measured(&format!("{grpc}/no.Service/Method"), RequestFormat::default()).await.unwrap_err();
    assert!(unknown_method.contains("501"), "{unknown_method}");
}

#[test]
fn a_target_that_cannot_be_reached_is_not_measured() {
    let bench = |url: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_ghostserve")).args(["bench", url]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    // A port that was free a moment ago, so that no server listens on it.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = bench(&format!("http://{address}/"));
    assert!(error.contains("cannot connect") && error.contains("is the server running?"), "{error}");
    assert!(bench("https://localhost/").contains("https is not supported"));
}
