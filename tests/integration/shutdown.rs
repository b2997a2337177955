//! Shutdown: readiness fails first, then the listeners close, and every admitted request gets its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::images::JPEG;
use crate::server::{TestServer, answer, code};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_fails_at_once_and_requests_are_still_served_for_the_grace_period() {
    let server = TestServer::with(|c| c.time.drain_grace = Duration::from_secs(2)).await;
    assert_eq!(server.get("/readyz").await.text().await.unwrap(), "ok\n");
    server.stop.stop();
    // The server's task notices the stop a moment later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(code(answer(server.get("/readyz").await).await), (503, "draining".into()));
    assert_eq!(server.get("/livez").await.status(), 200);
    let response = server.post("/v1/classify").body(JPEG).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["connection"].to_str().unwrap()), (200, "close"));
    server.running.await.unwrap();
    assert!(reqwest::get(format!("http://{}/livez", server.address)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_every_admitted_request_is_answered() {
    let server = Arc::new(TestServer::with(|c| c.time.drain_grace = Duration::from_millis(500)).await);
    let (answered, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stopped = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..32)
        .map(|_| {
            let (server, answered, lost, stopped) =
                (Arc::clone(&server), Arc::clone(&answered), Arc::clone(&lost), Arc::clone(&stopped));
            tokio::spawn(async move {
                loop {
                    match server.post("/v1/classify").body(JPEG).send().await {
                        Ok(response) if response.status() == 200 => {
                            // The whole answer, not only its head.
                            assert_eq!(answer(response).await.0, 200);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        // The listener is closed, so connections are refused.
                        Err(error) if error.is_connect() && stopped.load(Ordering::Relaxed) => break,
                        other => {
                            println!("lost: {other:?}");
                            lost.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = answered.load(Ordering::Relaxed);
    assert!(before > 0);
    stopped.store(true, Ordering::Relaxed);
    server.stop.stop();
    let start = Instant::now();
    for client in clients {
        client.await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(8));
    assert!(answered.load(Ordering::Relaxed) > before, "requests are served during the grace period");
    assert_eq!(lost.load(Ordering::Relaxed), 0);
}
