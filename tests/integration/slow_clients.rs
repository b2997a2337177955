//! Clients that are slow on purpose, and clients that are only idle.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::images::JPEG;
use crate::server::TestServer;

const SHORT: Duration = Duration::from_millis(300);

/// Opens a connection and sends `bytes`, one every `pause`. Returns the time until the server closed it, and the
/// server's answer.
async fn closed_after(server: &TestServer, bytes: &[u8], pause: Duration) -> (Duration, String) {
    // Before connecting: the server's timer may start before this task continues.
    let start = Instant::now();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let write = async {
        for byte in bytes {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        _ = reader.read_to_end(&mut answer) => {}
        () = write => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the connection was not closed"),
    }
    (start.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_complete_head_is_closed() {
    let server = TestServer::with(|c| c.time.header_timeout = SHORT).await;
    let slow = Duration::from_millis(50);
    // No bytes; a head that arrives slowly; prefixes that could still become HTTP/2's preface.
    for bytes in [&b""[..], b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: 1\r\n", b"P", b"PRI * HT"] {
        let (took, answer) = closed_after(&server, bytes, slow).await;
        assert!(took >= SHORT && took < SHORT * 5, "{bytes:?}: {took:?}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert_eq!(server.metric("ghostserve_http_connection_timeouts_total{phase=\"header\"}").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_but_steady_body_gets_a_408_after_the_body_timeout() {
    let server = TestServer::with(|c| c.time.body_timeout = SHORT).await;
    let head = format!("POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", JPEG.len());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let start = Instant::now();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        for byte in JPEG {
            let _ = writer.write_all(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answer = vec![0; 4096];
    let length = tokio::select! {
        read = reader.read(&mut answer) => read.unwrap(),
        () = trickle => panic!("the whole body was read"),
    };
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    // The server reads the rest for a second, so that the answer is not lost.
    assert!(start.elapsed() < SHORT + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_outlives_the_header_timeout_but_not_the_idle_timeout() {
    let server = TestServer::with(|c| {
        c.time.header_timeout = Duration::from_millis(100);
        c.time.idle_timeout = Duration::from_secs(1);
    })
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut buffer = [0; 4096];
    for _ in 0..3 {
        stream.write_all(request).await.unwrap();
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..length].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..length]));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let start = Instant::now();
    assert_eq!(stream.read(&mut buffer).await.unwrap_or(0), 0, "closed");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(server.metric("ghostserve_http_connection_timeouts_total{phase=\"idle\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_disconnect_leave_no_resources_behind() {
    let server = TestServer::start().await;
    let head = format!("POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", JPEG.len());
    for i in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // In the middle of the body, or right after it.
        let part = if i % 2 == 0 { &JPEG[..JPEG.len() / 2] } else { JPEG };
        stream.write_all(part).await.unwrap();
    }
    // The one request is the metrics request itself.
    server.settles("ghostserve_http_requests_in_flight", 1.0).await;
    server.settles("ghostserve_images_in_flight{model=\"ghostnetv2-cifar10\"}", 0.0).await;
    server.settles("ghostserve_body_bytes", 0.0).await;
    assert_eq!(server.classify("", JPEG).await.0, 200);
}
