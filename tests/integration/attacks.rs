//! Clients that try to exhaust shared resources: memory, threads, connections, request slots. Each attack is cheap, and
//! each worked once. `tests/hostile` runs these and more against the release build and measures what another client
//! sees.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use ghostserve::preprocess::{ImageLimits, decode, probe};
use reqwest::multipart::{Form, Part};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::images::{JPEG, png_of_zeros};
use crate::server::{TestServer, answer, code};

/// A codec that passes messages through as bytes, valid or not.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining()).to_vec()))
    }
}

async fn grpc(server: &TestServer) -> tonic::client::Grpc<Channel> {
    let channel = Channel::from_shared(server.url("")).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    client
}

/// Calls a unary method. The bytes of `message` need not be a valid message.
async fn call(server: &TestServer, method: &'static str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = grpc(server).await;
    let answer = client.unary(Request::new(message), PathAndQuery::from_static(method), RawCodec).await;
    answer.map(tonic::Response::into_inner)
}

/// A client that connects from 127.0.0.`last`: another address than that of the default client.
fn client_at(last: u8) -> reqwest::Client {
    reqwest::Client::builder().local_address(IpAddr::from([127, 0, 0, last])).build().unwrap()
}

async fn classify_from(client: &reqwest::Client, server: &TestServer) -> (u16, serde_json::Value) {
    answer(client.post(server.url("/v1/classify")).body(JPEG).send().await.unwrap()).await
}

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const CLASSIFY: &str = "/ghostserve.v1.InferenceService/Classify";
const FEATURES: &str = "/ghostserve.v1.InferenceService/ExtractFeatures";

#[tokio::test(flavor = "multi_thread")]
async fn messages_with_millions_of_empty_fields_are_refused_before_decoding() {
    let server = TestServer::start().await;
    let before = server.metric("process_resident_memory_bytes").await;
    for (method, field, expected) in [
        (INFER, 0x2a, "invalid_request"),
        (INFER, 0x32, "invalid_request"),
        (INFER, 0x22, "invalid_request"),
        (INFER, 0x3a, "too_many_images"),
        (CLASSIFY, 0x12, "too_many_images"),
        (FEATURES, 0x1a, "invalid_request"),
    ] {
        let status = call(&server, method, [field, 0].repeat(5_000_000)).await.unwrap_err();
        let details = status.get_error_details();
        let reason = &details.error_info().unwrap().reason;
        assert_eq!((status.code(), &reason[..]), (Code::InvalidArgument, expected), "{method} {field:x}: {status:?}");
        assert!(status.message().contains("more than"), "{status:?}");
    }
    let growth = server.metric("process_resident_memory_bytes").await - before;
    assert!(growth < 100e6, "grew by {growth} bytes");
    server.settles("ghostserve_body_bytes", 0.0).await;
    assert_eq!(server.classify("", JPEG).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_without_images_accept_only_small_messages() {
    let server = TestServer::start().await;
    // A name of 100 kB.
    let message = [&[0x0a, 0xa0, 0x8d, 0x06][..], &[b'x'; 100_000]].concat();
    for method in ["/inference.GRPCInferenceService/ModelReady", "/grpc.health.v1.Health/Check"] {
        let status = call(&server, method, message.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{method}: {status:?}");
    }
}

/// Protobuf lets a message repeat a scalar field, so its encoding may be much longer than its content. The server
/// counts all encoded bytes and must release them.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_releases_the_memory_of_its_messages() {
    let server = TestServer::start().await;
    let mut client = grpc(&server).await;
    let (mut sender, messages) = futures::channel::mpsc::channel(1);
    let path = PathAndQuery::from_static("/ghostserve.v1.InferenceService/ClassifyStream");
    let mut answers = client.streaming(Request::new(messages), path, RawCodec).await.unwrap().into_inner();
    // The field `id` of 1 kB, a thousand times; no images.
    let id = [&[0x0a, 0x80, 0x08][..], &[b'x'; 1024]].concat();
    for _ in 0..3 {
        futures::SinkExt::send(&mut sender, id.repeat(1000)).await.unwrap();
        assert!(answers.message().await.unwrap().is_some());
    }
    server.settles("ghostserve_body_bytes", 0.0).await;
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn json_with_too_many_elements_is_refused_during_parsing() {
    let server = TestServer::start().await;
    let before = server.metric("process_resident_memory_bytes").await;
    let many = |one: &str| vec![one; 500_000].join(",");
    let parameters = (0..500_000).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(",");
    for (name, body) in [
        ("inputs", format!("{{\"inputs\":[{}]}}", many("{\"name\":\"\",\"shape\":[],\"datatype\":\"\"}"))),
        ("outputs", format!("{{\"inputs\":[],\"outputs\":[{}]}}", many("{\"name\":\"\"}"))),
        ("parameters", format!("{{\"inputs\":[],\"parameters\":{{{parameters}}}}}")),
        ("a parameter", format!("{{\"inputs\":[],\"parameters\":{{\"a\":[{}]}}}}", many("0"))),
        ("shape", format!("{{\"inputs\":[{{\"name\":\"\",\"datatype\":\"\",\"shape\":[{}]}}]}}", many("0"))),
    ] {
        let request = server.post("/v2/models/ghostnetv2-cifar10/infer").header("content-type", "application/json");
        let response = request.body(body).send().await.unwrap();
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        assert_eq!(status, 400, "{name}: {text}");
        assert!(text.contains("at most") || text.contains("expected true, false"), "{name}: {text}");
    }
    let growth = server.metric("process_resident_memory_bytes").await - before;
    assert!(growth < 200e6, "grew by {growth} bytes");
    server.settles("ghostserve_body_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bytes_tensor_with_more_elements_than_its_shape_is_refused_while_it_is_split() {
    let server = TestServer::start().await;
    let json =
        r#"{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":8000000}}]}"#;
    let request = server
        .post("/v2/models/ghostnetv2-cifar10/infer")
        .header("inference-header-content-length", json.len())
        .body([json.as_bytes(), &[0; 8_000_000]].concat());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains("its data are more"));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_zero_width_or_height_are_undecodable() {
    let server = TestServer::start().await;
    let gif = |canvas: (u16, u16), frame: (u16, u16)| {
        let mut file = b"GIF89a".to_vec();
        for side in [canvas.0, canvas.1] {
            file.extend(side.to_le_bytes());
        }
        // A palette of two colours, then a frame whose only codes are clear and end.
        file.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255, b',', 0, 0, 0, 0]);
        for side in [frame.0, frame.1] {
            file.extend(side.to_le_bytes());
        }
        file.extend([0, 2, 2, 0x44, 0x01, 0, b';']);
        file
    };
    for canvas in [(0, 0), (0, 16), (16, 0)] {
        for frame in [(0, 0), (0, 16), (16, 0), (16, 16)] {
            let (status, code) = code(server.classify("", gif(canvas, frame)).await);
            assert_eq!((status, &code[..]), (422, "undecodable_image"), "{canvas:?} {frame:?}");
        }
    }
}

/// Requests with large images wait or are refused; other requests are answered without delay.
#[tokio::test(flavor = "multi_thread")]
async fn large_images_do_not_delay_other_requests() {
    let server = TestServer::start().await;
    let large = png_of_zeros(7000, 7000);
    assert!(large.len() < 200_000, "{}", large.len());
    let server = Arc::new(server);
    // Each attacker sends its next request after the answer to the previous one. How many wait at a time depends on
    // the machine.
    let attackers: Vec<_> = (0..4)
        .map(|_| {
            let (server, large) = (Arc::clone(&server), large.clone());
            tokio::spawn(async move {
                loop {
                    let part = |i: usize| (i.to_string(), Part::bytes(large.clone()).file_name("x.png"));
                    let form = (0..8).map(part).fold(Form::new(), |form, (name, part)| form.part(name, part));
                    // The attack goes on whether the request is answered or refused.
                    let _ = server.post("/v1/classify").multipart(form).send().await;
                }
            })
        })
        .collect();
    // The metrics request itself, and at least one with large images.
    server.reaches("ghostserve_http_requests_in_flight", 2.0).await;
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(server.classify("", JPEG).await.0, 200);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    // The answers to the attackers do not matter.
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
    server.settles("ghostserve_images_in_flight{model=\"ghostnetv2-cifar10\"}", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_its_share_of_large_images_is_refused_and_another_is_served() {
    // Four slots for large images, of which one client gets two.
    let server = TestServer::with(|c| {
        c.load.max_images_in_flight = 16;
        c.request.max_images_per_request = 16;
    })
    .await;
    let large = png_of_zeros(5000, 5000);
    let part = |i: usize| (i.to_string(), Part::bytes(large.clone()).file_name("x.png"));
    let form = (0..8).map(part).fold(Form::new(), |form, (name, part)| form.part(name, part));
    let greedy = tokio::spawn(server.post("/v1/classify").multipart(form).send());
    let refusals = "ghostserve_client_share_refusals_total{resource=\"large_images\"}";
    server.settles(refusals, 6.0).await;
    let other = client_at(3).post(server.url("/v1/classify")).body(large.clone()).send().await.unwrap();
    assert_eq!(other.status(), 200);
    let (status, results) = answer(greedy.await.unwrap().unwrap()).await;
    assert_eq!(status, 200);
    let codes: Vec<_> = results["results"].as_array().unwrap().iter().map(|r| r["error"]["code"].as_str()).collect();
    assert_eq!(codes.iter().filter(|code| code.is_none()).count(), 2, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some("overloaded")).count(), 6, "{codes:?}");
}

/// The decoder once scanned the fill bytes at the end of a truncated JPEG again for every few missing bits.
#[test]
fn a_truncated_jpeg_with_many_fill_bytes_is_refused_at_once() {
    // One row of blocks, 16,384 pixels wide. The decoder looks for the end of the scan after the whole row.
    let mut file = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    file.extend([1; 64]);
    file.extend(b"\xff\xc0\0\x0b\x08\0\x08\x40\0\x01\x01\x11\0");
    // Sixteen zero bits are the only code: for DC a difference of 11 bits, for AC a coefficient of 10 bits.
    for table in [0x00, 0x10] {
        file.extend([0xff, 0xc4, 0, 20, table]);
        file.extend([0; 15]);
        file.extend([1, if table == 0 { 0x0b } else { 0x0a }]);
    }
    file.extend(b"\xff\xda\0\x08\x01\x01\0\0\x3f\0");
    file.extend(vec![0xff; 4 << 20]);
    let start = Instant::now();
    assert!(probe(&file, ImageLimits::default()).and_then(decode).is_err());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// A GIF of one pixel whose LZW codes only clear the table: reading them takes seconds and produces no pixel.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_image_that_takes_seconds_to_decode_is_refused() {
    let server = TestServer::with(|c| c.time.request_timeout = Duration::from_secs(30)).await;
    let mut file = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x0b".to_vec();
    // Two 12-bit codes in three bytes; 0x800 is the clear code.
    let codes = [0x00, 0x08, 0x80].repeat(85);
    for _ in 0..36_000 {
        file.push(255);
        file.extend(&codes);
    }
    file.extend(b"\0;");
    let (status, code) = code(server.classify("", file).await);
    assert_eq!((status, &code[..]), (422, "undecodable_image"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_below_the_minimum_rate_is_refused_long_before_the_body_timeout() {
    let server = TestServer::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let start = Instant::now();
    stream.write_all(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        loop {
            let _ = writer.write_all(&[0xFF]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = vec![0; 4096];
    let length = tokio::select! {
        read = reader.read(&mut answer) => read.unwrap(),
        () = trickle => unreachable!(),
    };
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too slowly"), "{answer}");
    // Two seconds of grace, and one second in which the rest of the body is read and discarded.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_request_slots() {
    let server = TestServer::with(|c| c.load.max_requests_in_flight = 4).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
        open.push(stream);
    }
    // The third is the metrics request itself.
    server.settles("ghostserve_http_requests_in_flight", 3.0).await;
    let (status, problem) = server.classify("", JPEG).await;
    assert_eq!(status, 429);
    assert!(problem["detail"].as_str().unwrap().contains("one client address"), "{problem}");
    assert_eq!(classify_from(&client_at(2), &server).await.0, 200);
    assert_eq!(server.metric("ghostserve_client_share_refusals_total{resource=\"requests\"}").await, 1.0);
    drop(open);
    server.settles("ghostserve_http_requests_in_flight", 1.0).await;
    assert_eq!(server.classify("", JPEG).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() {
    let server = TestServer::with(|c| c.load.max_connections = 4).await;
    let other = client_at(2);
    let address = server.address;
    let idle: Vec<TcpStream> = futures::future::join_all((0..2).map(|_| TcpStream::connect(address)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let mut third = TcpStream::connect(address).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(2), third.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert_eq!(classify_from(&other, &server).await.0, 200);
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_answer_is_dropped_and_its_memory_released() {
    let server = TestServer::start().await;
    let socket = TcpSocket::new_v4().unwrap();
    // Bytes in the socket buffers count as read, so the receive buffer is small.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    let path = "/v1/features?size=640&levels=c1,c2,c3,c4,c5";
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", JPEG.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(JPEG).await.unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).await.unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
    assert!(server.metric("ghostserve_feature_bytes").await > 0.0);
    let start = Instant::now();
    while server.metric("ghostserve_http_connection_timeouts_total{phase=\"response\"}").await < 1.0 {
        assert!(start.elapsed() < Duration::from_secs(30), "the connection was not closed in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.settles("ghostserve_feature_bytes", 0.0).await;
    // The connection is closed after the bytes that were already sent.
    let rest = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut Vec::new())).await;
    assert!(rest.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_over_its_memory_limit_sheds_only_while_requests_are_in_flight() {
    // One byte: every process is over this limit.
    let server = TestServer::with(|c| c.load.max_memory = Some(1)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Nothing is in flight, so a refusal would free no memory.
    assert_eq!(server.classify("", JPEG).await.0, 200);
    let requests: Vec<_> = (0..40).map(|_| tokio::spawn(server.post("/v1/classify").body(JPEG).send())).collect();
    let (mut answered, mut shed) = (0, 0);
    for request in requests {
        let (status, body) = answer(request.await.unwrap().unwrap()).await;
        match status {
            200 => answered += 1,
            _ => {
                assert!(body["detail"].as_str().unwrap().contains("memory of the process"), "{body}");
                shed += 1;
            }
        }
    }
    assert!(answered > 0 && shed > 0, "{answered} answered, {shed} shed");
}

#[test]
fn png_of_zeros_makes_a_valid_png() {
    let file = png_of_zeros(70, 50);
    assert_eq!(probe(&file, ImageLimits::default()).unwrap().info().width, 70);
    assert!(probe(&file, ImageLimits::default()).and_then(decode).is_ok());
}
