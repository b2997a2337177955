//! Requests that are malformed, too large or malicious: each gets its status, and the server keeps working.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;
use proptest::prelude::*;
use reqwest::multipart::{Form, Part};
use serde_json::json;

use ghostserve::preprocess::{Format, ImageError, ImageLimits, decode, probe};

use crate::images::{JPEG, drawn_image, png, png_header};
use crate::server::{TestServer, answer, code};

async fn post(server: &TestServer, kind: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
    let request = server.post("/v1/classify").header("content-type", kind).body(body);
    code(answer(request.send().await.unwrap()).await)
}

async fn still_works(server: &TestServer) {
    assert_eq!(server.classify("", JPEG).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused() {
    let server = TestServer::start().await;
    let expect = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(code(server.classify("", "").await), expect(400, "no_image"));
    assert_eq!(post(&server, "application/json", "{").await, expect(400, "invalid_json"));
    assert_eq!(post(&server, "application/json", "{\"images\": 3}").await, expect(400, "invalid_json"));
    assert_eq!(
        post(&server, "application/json", "{\"images\": [], \"url\": \"http://x\"}").await,
        expect(400, "invalid_json")
    );
    assert_eq!(post(&server, "application/json", "{\"images\": []}").await, expect(400, "no_image"));
    assert_eq!(post(&server, "application/json", "{\"images\": [\"%\"]}").await, expect(400, "invalid_base64"));
    assert_eq!(post(&server, "application/json", "{\"images\": [\"data:,x\"]}").await, expect(400, "invalid_base64"));
    assert_eq!(post(&server, "multipart/form-data", "x").await, expect(400, "invalid_multipart"));
    assert_eq!(post(&server, "multipart/form-data; boundary=b", "x").await, expect(400, "invalid_multipart"));
    assert_eq!(post(&server, "multipart/form-data; boundary=b", "--b--\r\n").await, expect(400, "no_image"));
    let field = "--b\r\nContent-Disposition: form-data; name=\"top_k\"\r\n\r\n5\r\n--b--\r\n";
    assert_eq!(post(&server, "multipart/form-data; boundary=b", field).await, expect(400, "invalid_parameter"));
    assert_eq!(post(&server, "text/html", "<p>").await, expect(415, "unsupported_media_type"));
    let gzip = server.post("/v1/classify").header("content-encoding", "gzip").body(JPEG).send().await.unwrap();
    assert_eq!(code(answer(gzip).await), expect(415, "unsupported_media_type"));
    still_works(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_refused() {
    let server = TestServer::start().await;
    assert_eq!(code(answer(server.get("/v3/classify").await).await), (404, "unknown_route".into()));
    let response = server.get("/v1/classify").await;
    assert_eq!(response.headers()["allow"], "POST");
    assert_eq!(code(answer(response).await), (405, "method_not_allowed".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_a_supported_image_are_refused() {
    let server = TestServer::start().await;
    for file in [&b"just text"[..], b"%PDF-1.7 ...", b"\0\0\0\x1cftypavif\0\0\0\0", b"<svg xmlns='x'/>", &[0; 4000]] {
        assert_eq!(code(server.classify("", file).await), (415, "unsupported_image_format".into()));
    }
    // The first bytes decide the format: a script after a GIF's signature is a damaged GIF.
    assert_eq!(
        code(server.classify("", &b"GIF89a\x10\0\x10\0\0\0\0<script>alert(1)</script>"[..]).await),
        (422, "undecodable_image".into())
    );
    // A JPEG followed by a ZIP archive is a JPEG.
    assert_eq!(server.classify("", [JPEG, b"PK\x03\x04rest of an archive"].concat()).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit_are_refused_declared_or_not() {
    let server = TestServer::with(|c| {
        c.request.max_body_bytes = 100_000;
        c.request.max_multi_body_bytes = 200_000;
    })
    .await;
    let expected = (413, "body_too_large".to_owned());
    assert_eq!(code(server.classify("", vec![0; 100_001]).await), expected);
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![0u8; 10_000])));
    assert_eq!(code(server.classify("", reqwest::Body::wrap(http_body(chunks))).await), expected);
    assert_eq!(post(&server, "application/json", vec![b' '; 200_001]).await, expected);
    let json = format!("{{\"{}\": 1}}", "x".repeat(150_000));
    let (status, problem) =
        answer(server.post("/v1/classify").header("content-type", "application/json").body(json).send().await.unwrap())
            .await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().len() < 2000, "the request is not echoed");
    // Refused for another reason while megabytes are still to be sent.
    let response =
        server.post("/v1/classify").header("content-type", "text/html").body(vec![0; 8_000_000]).send().await.unwrap();
    assert_eq!(code(answer(response).await), (415, "unsupported_media_type".into()));
    // Far over the limit: the answer arrives although the client is still sending.
    assert_eq!(code(server.classify("", vec![0; 20_000_000]).await), expected);
    still_works(&server).await;
    server.settles("ghostserve_body_bytes", 0.0).await;
}

fn http_body<S>(chunks: S) -> impl http_body::Body<Data = bytes::Bytes, Error = std::io::Error>
where
    S: futures::Stream<Item = std::io::Result<Vec<u8>>>,
{
    use futures::StreamExt;
    http_body_util::StreamBody::new(chunks.map(|chunk| chunk.map(|bytes| http_body::Frame::data(bytes.into()))))
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_images_parts_or_part_headers_are_refused() {
    let server = TestServer::start().await;
    let image = STANDARD.encode(png(1));
    let response = server.post("/v1/classify").json(&json!({"images": vec![image; 33]})).send().await.unwrap();
    assert_eq!(code(answer(response).await), (413, "too_many_images".into()));

    let form = (0..33).fold(Form::new(), |form, i| form.part(i.to_string(), Part::bytes(png(i)).file_name("x.png")));
    let response = server.post("/v1/classify").multipart(form).send().await.unwrap();
    assert_eq!(code(answer(response).await), (413, "too_many_images".into()));

    let part = "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"f\"\r\n\r\n\r\n";
    let many = part.repeat(100_000) + "--b--\r\n";
    assert_eq!(post(&server, "multipart/form-data; boundary=b", many).await, (413, "too_many_images".into()));

    let headers: String = (0..17).map(|i| format!("X-{i}: y\r\n")).collect();
    let part =
        format!("--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"f\"\r\n{headers}\r\nx\r\n--b--\r\n");
    assert_eq!(post(&server, "multipart/form-data; boundary=b", part).await, (400, "invalid_multipart".into()));
    still_works(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_canvases_in_small_files_are_refused_by_their_header() {
    let server = TestServer::start().await;
    let too_large = (413, "image_too_large".to_owned());
    let before = server.metric("process_resident_memory_bytes").await;
    for (width, height) in [(16_384, 16_384), (20_000, 1), (4_000_000_000, 4_000_000_000)] {
        let file = png_header(width, height);
        assert!(file.len() < 100);
        for _ in 0..20 {
            let (status, code) = code(server.classify("", file.clone()).await);
            // PNG limits each side to 31 bits; a larger value makes the file invalid.
            assert!((status, code.clone()) == too_large || (width > 1 << 31 && status == 422), "{status} {code}");
        }
    }
    let mut webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
    webp.extend(b"\xff\x3f\0\xff\x3f\0VP8L\0\0\0\0");
    assert_eq!(code(server.classify("", webp).await), too_large);
    let mut gif = b"GIF89a".to_vec();
    gif.extend(b"\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;");
    assert_eq!(code(server.classify("", gif).await), too_large);
    let growth = server.metric("process_resident_memory_bytes").await - before;
    assert!(growth < 50e6, "grew by {growth} bytes");
    still_works(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jpeg_of_a_thousand_scans_is_refused() {
    let server = TestServer::start().await;
    let scan = JPEG.windows(2).position(|w| w == [0xFF, 0xDA]).unwrap();
    let (head, scan) = (&JPEG[..scan], &JPEG[scan..JPEG.len() - 2]);
    let bomb = [head, &scan.repeat(1000), &[0xFF, 0xD9]].concat();
    assert_eq!(code(server.classify("", bomb).await), (413, "image_too_large".into()));
    still_works(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_shed_with_retry_after_and_all_gauges_return_to_zero() {
    let server = TestServer::with(|c| {
        c.execution.workers = Some(1);
        c.load.max_images_in_flight = 32;
    })
    .await;
    let photo = drawn_image(1200, 900, 3, ImageFormat::Png);
    let requests: Vec<_> =
        (0..150).map(|_| tokio::spawn(server.post("/v1/classify").body(photo.clone()).send())).collect();
    let (mut answered, mut shed) = (0, 0);
    for request in requests {
        let response = request.await.unwrap().unwrap();
        match response.status().as_u16() {
            200 => answered += 1,
            429 => {
                shed += 1;
                let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!((1..60).contains(&seconds));
                assert_eq!(code(answer(response).await), (429, "overloaded".into()));
            }
            other => panic!("{other}"),
        }
    }
    assert!(answered >= 32 && shed > 0, "{answered} answered, {shed} shed");
    for gauge in ["images_in_flight", "queue_depth"] {
        server.settles(&format!("ghostserve_{gauge}{{model=\"ghostnetv2-cifar10\"}}"), 0.0).await;
    }
    assert_eq!(server.metric("ghostserve_problems_total{code=\"overloaded\"}").await, f64::from(shed));
    still_works(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_limit_are_shed_before_their_body_is_read() {
    let server = TestServer::with(|c| c.load.max_requests_in_flight = 1).await;
    // A request whose body never arrives holds the only slot.
    let head = format!("POST /v1/classify HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\n\r\n", server.address);
    let mut slow = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut slow, head.as_bytes()).await.unwrap();
    server.settles("ghostserve_http_requests_in_flight", 2.0).await;
    assert_eq!(code(server.classify("", JPEG).await), (429, "overloaded".into()));
    assert_eq!(server.get("/readyz").await.status(), 200, "the limit does not apply to health checks");
    drop(slow);
    server.settles("ghostserve_http_requests_in_flight", 1.0).await;
    still_works(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_of_clients_are_used_if_they_are_safe_in_a_log() {
    let server = TestServer::start().await;
    for (id, accepted) in [("abc-123", true), (&"x".repeat(129)[..], false), ("a b", false)] {
        let response = server.client.get(server.url("/nothing")).header("x-request-id", id).send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"] == id, accepted, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cannot_create_metric_labels() {
    let server = TestServer::start().await;
    let series = || async { server.get("/metrics").await.text().await.unwrap().lines().count() };
    let _ = server.get("/random/first").await;
    let _ = answer(server.get("/v1/models/first").await).await;
    let _ = series().await;
    let before = series().await;
    for i in 0..1000 {
        let _ = server.get(&format!("/random/{i}")).await;
        let _ = server.get(&format!("/v1/models/{i}")).await;
    }
    assert_eq!(series().await, before);
}

/// Asserts that decoding ends within a second, with an image or an error. Our own JPEG decoder must not panic; the
/// libraries for other formats may, and a guard catches that.
fn survives(bytes: &[u8]) {
    let start = std::time::Instant::now();
    let limits = ImageLimits { max_pixels: 4_000_000, ..ImageLimits::default() };
    let error = probe(bytes, limits).and_then(decode).err();
    assert!(error != Some(ImageError::DecoderPanic(Format::Jpeg)));
    assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Decodes about 60 prefixes of each golden image. A damaged file never crashes the decoder and never costs much.
#[test]
fn every_truncation_is_an_error_or_an_image() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/images");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let step = (bytes.len() / 60).max(1);
        for end in (0..bytes.len()).step_by(step) {
            survives(&bytes[..end]);
        }
    }
}

/// A truncated JPEG is refused; the missing part is not filled with grey.
#[test]
fn a_truncated_jpeg_is_refused() {
    for name in ["jpeg-420.jpg", "jpeg-420-progressive.jpg", "jpeg-gray.jpg", "jpeg-420-restart.jpg"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/images").join(name);
        let bytes = std::fs::read(path).unwrap();
        for percent in [30, 60, 90] {
            let cut = &bytes[..bytes.len() * percent / 100];
            let result = probe(cut, ImageLimits::default()).and_then(decode);
            assert!(result.is_err(), "{name} cut to {percent} %");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Changes random bytes of files of every format: the result is an error or an image, and no panic escapes.
    #[test]
    fn random_damage_gives_an_error_or_an_image(
        file in 0usize..64,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/images");
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut bytes = std::fs::read(&paths[file % paths.len()]).unwrap();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        survives(&bytes);
    }
}
