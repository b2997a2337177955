//! The plan, admission, priorities and the response cache, as clients see them.

use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;

use crate::images::{JPEG, drawn_image};
use crate::server::{TestServer, answer};

const MODEL: &str = "model=\"ghostnetv2-cifar10\"";

async fn plan(server: &TestServer) -> Value {
    let model: Value = server.get("/v1/models/ghostnetv2-cifar10").await.json().await.unwrap();
    model["plan"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_not_given_are_measured_once_and_cached() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        TestServer::with(|c| {
            c.execution.no_calibration = false;
            c.execution.plan_cache = Some(folder.path().to_owned());
        })
    };
    let first = plan(&start().await).await;
    assert_eq!(first["origin"], "measured", "{first}");
    let measured = first["measured"].as_array().unwrap();
    let tried = |m: &Value| (m["workers"].as_u64().unwrap(), m["batch"].as_u64().unwrap());
    assert_eq!(measured.iter().map(tried).collect::<Vec<_>>(), [2, 1].map(|w| [1, 2, 4, 8].map(|b| (w, b))).concat());
    assert!(measured.iter().all(|m| m["images_per_second"].as_f64().unwrap() > 1.0), "{first}");

    let second = plan(&start().await).await;
    assert_eq!(second["origin"], "cached");
    for number in ["workers", "threads_per_worker", "max_batch"] {
        assert_eq!(first[number], second[number], "{number}");
    }
    let given = TestServer::with(|c| {
        c.execution.no_calibration = false;
        (c.execution.workers, c.execution.threads_per_worker) = (Some(1), Some(1));
        c.execution.max_batch = Some(2);
    });
    let given = plan(&given.await).await;
    assert_eq!((&given["origin"], &given["max_batch"]), (&Value::from("given"), &Value::from(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_maximum_wait_are_shed_with_retry_after() {
    let server = TestServer::with(|c| c.load.max_wait = Duration::ZERO).await;
    let send = |priority: &'static str| server.post("/v1/classify").header("priority", priority).body(JPEG).send();
    let answers = join_all((0..24).map(|_| send("u=3"))).await;
    let (mut served, mut shed) = (0, 0);
    for response in answers {
        let response = response.unwrap();
        match response.status().as_u16() {
            200 => served += 1,
            429 => {
                shed += 1;
                assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
                let (_, body) = answer(response).await;
                assert_eq!(body["code"], "overloaded");
                assert!(body["detail"].as_str().unwrap().contains("waiting time"), "{body}");
            }
            other => panic!("{other}"),
        }
    }
    assert!(served > 0 && shed > 0, "{served} served, {shed} shed");
    assert_eq!(
        server.metric(&format!("ghostserve_images_shed_total{{{MODEL},reason=\"wait\"}}")).await,
        f64::from(shed)
    );
    // Requests of low urgency wait instead.
    for response in join_all((0..24).map(|_| send("u=6"))).await {
        assert_eq!(response.unwrap().status(), 200);
    }
    server.settles(&format!("ghostserve_predicted_wait_seconds{{{MODEL}}}"), 0.0).await;
    server.settles("ghostserve_cores_busy", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_cannot_be_met_is_refused_before_any_work() {
    let server = TestServer::start().await;
    assert_eq!(server.classify("", JPEG).await.0, 200);
    // 64 images are queued first, and the deadline is shorter than the time they need.
    let busy = join_all((0..64).map(|_| server.post("/v1/classify").body(JPEG).send()));
    let hurried = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let request = server.post("/v1/classify").header("x-request-timeout-ms", "2").body(JPEG);
        answer(request.send().await.unwrap()).await
    };
    let (_, (status, body)) = futures::join!(busy, hurried);
    assert_eq!((status, &body["code"]), (504, &Value::from("deadline_exceeded")), "{body}");
    assert_eq!(server.metric(&format!("ghostserve_images_shed_total{{{MODEL},reason=\"deadline\"}}")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_file_is_neither_decoded_nor_run_again() {
    let server = TestServer::with(|c| c.load.response_cache = 1 << 20).await;
    let other = drawn_image(64, 48, 1, image::ImageFormat::Png);
    let outcomes = async |outcome: &str| {
        server.metric(&format!("ghostserve_response_cache_total{{{MODEL},outcome=\"{outcome}\"}}")).await
    };
    let answers = join_all((0..8).map(|_| server.classify("", JPEG))).await;
    assert!(answers.iter().all(|(status, body)| *status == 200 && body == &answers[0].1));
    assert_eq!(outcomes("miss").await, 1.0, "eight at the same time, run once");
    assert_eq!(outcomes("hit").await + outcomes("coalesced").await, 7.0);

    let before = outcomes("hit").await;
    let (_, three) = server.classify("?top_k=3", JPEG).await;
    assert_eq!(
        three["results"][0]["predictions"].as_array().map(Vec::len),
        Some(3),
        "other parameters, the same scores"
    );
    assert_eq!(outcomes("hit").await, before + 1.0);
    assert_eq!(server.classify("", other).await.0, 200);
    assert_eq!(outcomes("miss").await, 2.0);
    // A file that cannot be decoded is refused every time.
    for _ in 0..2 {
        assert_eq!(server.classify("", &JPEG[..JPEG.len() / 2]).await.0, 422);
    }
    server.settles(&format!("ghostserve_images_in_flight{{{MODEL}}}"), 0.0).await;
    let text = server.get("/metrics").await.text().await.unwrap();
    let dropped = text.lines().filter(|line| line.starts_with("ghostserve_images_dropped_total"));
    assert!(dropped.clone().all(|line| line.ends_with(" 0")), "{:?}", dropped.collect::<Vec<_>>());
}
