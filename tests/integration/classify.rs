//! `POST /v1/classify`: the three kinds of input, the parameters, and what an answer contains.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::images::{JPEG, drawn_image, png};
use crate::server::{TestServer, answer, code};

fn predictions(json: &Value, index: usize) -> &Vec<Value> {
    json["results"][index]["predictions"].as_array().unwrap_or_else(|| panic!("no predictions: {json}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_image_gets_a_complete_answer() {
    let server = TestServer::start().await;
    let response = server.post("/v1/classify").body(JPEG).header("x-request-id", "my-id.1").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "my-id.1");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let timing = response.headers()["server-timing"].to_str().unwrap().to_owned();
    for stage in ["read", "decode", "resize", "queue", "infer", "encode"] {
        let entry = timing.split(", ").find(|entry| entry.starts_with(&format!("{stage};dur=")));
        let ms: f64 =
            entry.unwrap_or_else(|| panic!("{stage} in {timing}")).split('=').nth(1).unwrap().parse().unwrap();
        assert!((0.0..10_000.0).contains(&ms));
    }
    let (status, json) = answer(response).await;
    assert_eq!(status, 200);
    assert_eq!(json["model"]["id"], "ghostnetv2-cifar10");
    assert!(json["model"]["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(json["results"][0]["image"], json!({"format": "jpeg", "width": 96, "height": 80}));
    let predictions = predictions(&json, 0);
    assert_eq!(predictions.len(), 5);
    let probabilities: Vec<f64> = predictions.iter().map(|p| p["probability"].as_f64().unwrap()).collect();
    assert!(probabilities.is_sorted_by(|a, b| a >= b), "{probabilities:?}");
    let labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    for p in predictions {
        assert_eq!(p["label"], labels[p["class"].as_u64().unwrap() as usize]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_type_does_not_have_to_be_right_for_a_raw_image() {
    let server = TestServer::start().await;
    let (_, expected) = server.classify("", JPEG).await;
    // The third is curl's default.
    for kind in ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", "IMAGE/JPEG; q=1"] {
        let response = server.post("/v1/classify").body(JPEG).header("content-type", kind).send().await.unwrap();
        assert_eq!(answer(response).await, (200, expected.clone()), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_curl_has_damaged_is_answered_with_the_right_command() {
    let server = TestServer::start().await;
    let form = "application/x-www-form-urlencoded";
    // `curl -d @FILE` leaves out line breaks; later versions also leave out zero bytes.
    let without = |removed: &[u8]| JPEG.iter().copied().filter(|byte| !removed.contains(byte)).collect::<Vec<_>>();
    let varied = (0..=255).cycle().filter(|byte| !b"\r\n".contains(byte)).take(4096);
    let long = [without(b"\r\n"), varied.collect()].concat();
    for body in [without(b"\r\n\0"), long, b"image=%FF%D8%FF".to_vec()] {
        for path in ["/v1/classify", "/v1/features"] {
            let response = server.post(path).body(body.clone()).header("content-type", form).send().await.unwrap();
            let (status, json) = answer(response).await;
            assert_eq!((status, &json["code"]), (415, &"unsupported_media_type".into()), "{json}");
            let detail = json["detail"].as_str().unwrap();
            assert!(["--data-binary @", "requests.post", "-F image=@"].iter().all(|w| detail.contains(w)), "{detail}");
        }
    }
    // The bytes of an image of one colour are few, and may be no line breaks.
    let flat = [&JPEG[..3], &[0; 4096]].concat();
    let response = server.post("/v1/classify").body(flat).header("content-type", form).send().await.unwrap();
    assert_eq!(response.status(), 422, "a damaged JPEG file, not a damaged form");
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_multipart_and_json_give_the_same_answer() {
    let server = TestServer::start().await;
    let (_, raw) = server.classify("", JPEG).await;
    let form = Form::new().part("image", Part::bytes(JPEG).file_name("photo.jpg"));
    let multipart = server.post("/v1/classify").multipart(form).send().await.unwrap();
    assert_eq!(answer(multipart).await, (200, raw.clone()));
    let text = STANDARD.encode(JPEG);
    for text in [text.clone(), format!("data:image/jpeg;base64,{text}")] {
        let json = server.post("/v1/classify").json(&json!({"images": [text]})).send().await.unwrap();
        assert_eq!(answer(json).await, (200, raw.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_images_come_back_in_order() {
    let server = TestServer::start().await;
    let files: Vec<_> = (0..32).map(|seed| drawn_image(40 + seed, 50, seed, ImageFormat::Png)).collect();
    let mut form = Form::new();
    for (i, file) in files.iter().enumerate() {
        form = form.part(format!("file{i}"), Part::bytes(file.clone()).file_name(format!("{i}.png")));
    }
    let (status, json) = answer(server.post("/v1/classify").multipart(form).send().await.unwrap()).await;
    assert_eq!((status, json["results"].as_array().unwrap().len()), (200, 32));
    for (i, file) in files.into_iter().enumerate() {
        assert_eq!(json["results"][i]["image"]["width"], 40 + i);
        let (_, alone) = server.classify("", file).await;
        for (a, b) in predictions(&json, i).iter().zip(predictions(&alone, 0)) {
            assert_eq!(a["class"], b["class"], "image {i}");
            // The batch size changes only the order of additions.
            assert!((a["probability"].as_f64().unwrap() - b["probability"].as_f64().unwrap()).abs() < 1e-4);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_does_not_affect_the_others_of_its_request() {
    let server = TestServer::start().await;
    let good = STANDARD.encode(JPEG);
    let images = [&good[..], &STANDARD.encode(&JPEG[..JPEG.len() / 2]), "%%%", "", &STANDARD.encode(b"text"), &good];
    let response = server.post("/v1/classify").json(&json!({"images": images})).send().await.unwrap();
    let (status, json) = answer(response).await;
    assert_eq!(status, 200);
    let codes: Vec<_> = json["results"].as_array().unwrap().iter().map(|r| r["error"]["code"].as_str()).collect();
    let expected = [
        None,
        Some("undecodable_image"),
        Some("invalid_base64"),
        Some("no_image"),
        Some("unsupported_image_format"),
        None,
    ];
    assert_eq!(codes, expected);
    assert_eq!(predictions(&json, 0), predictions(&json, 5));
    assert_eq!(server.metric("ghostserve_images_total{model=\"ghostnetv2-cifar10\",outcome=\"ok\"}").await, 2.0);
    let bad = "ghostserve_images_total{model=\"ghostnetv2-cifar10\",outcome=\"undecodable_image\"}";
    assert_eq!(server.metric(bad).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_only_bad_images_fails_with_the_first_error() {
    let server = TestServer::start().await;
    let images = [STANDARD.encode(b"text"), STANDARD.encode(&JPEG[..200])];
    let response = server.post("/v1/classify").json(&json!({"images": images})).send().await.unwrap();
    assert_eq!(code(answer(response).await), (415, "unsupported_image_format".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn top_k_and_min_confidence_limit_the_predictions() {
    let server = TestServer::start().await;
    let (_, json) = server.classify("?top_k=10", JPEG).await;
    let all = predictions(&json, 0);
    assert_eq!(all.len(), 10);
    let sum: f64 = all.iter().map(|p| p["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");

    let (_, json) = server.classify("?top_k=1&model=ghostnetv2-cifar10", JPEG).await;
    assert_eq!(predictions(&json, 0), &all[..1]);

    let second = all[1]["probability"].as_f64().unwrap();
    let (_, json) = server.classify(&format!("?min_confidence={}", second - 1e-6), JPEG).await;
    assert_eq!(predictions(&json, 0), &all[..2]);
    let (status, json) = server.classify("?min_confidence=1", JPEG).await;
    assert_eq!((status, predictions(&json, 0).len()), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameters_are_refused_with_a_reason() {
    let server = TestServer::start().await;
    for (query, words) in [
        ("?top_k=0", "between 1 and the model's 10 classes"),
        ("?top_k=11", "found 11"),
        ("?top_k=many", "top_k"),
        ("?top_k=1&top_k=2", "top_k"),
        ("?min_confidence=1.5", "between 0 and 1"),
        ("?min_confidence=NaN", "between 0 and 1"),
        ("?topk=5", "unknown field `topk`"),
    ] {
        let (status, json) = server.classify(query, JPEG).await;
        assert_eq!((status, &json["code"]), (400, &json!("invalid_parameter")), "{query}");
        assert!(json["detail"].as_str().unwrap().contains(words), "{query}: {json}");
    }
    assert_eq!(code(server.classify("?model=other", JPEG).await), (404, "unknown_model".into()));
    let response = server.post("/v1/classify").body(JPEG).header("x-request-timeout-ms", "soon").send().await.unwrap();
    assert_eq!(code(answer(response).await), (400, "invalid_parameter".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_has_passed_is_a_504_and_the_image_is_dropped() {
    // One worker, kept busy by many images, so that the last one has to wait.
    let server = TestServer::with(|c| c.execution.workers = Some(1)).await;
    let file = STANDARD.encode(drawn_image(600, 600, 1, ImageFormat::Png));
    let busy = server.post("/v1/classify").json(&json!({"images": vec![file; 32]}));
    let busy = tokio::spawn(busy.send());
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    let late = server.post("/v1/classify").body(png(1)).header("x-request-timeout-ms", "1").send().await.unwrap();
    assert_eq!(code(answer(late).await), (504, "deadline_exceeded".into()));
    assert_eq!(busy.await.unwrap().unwrap().status(), 200);
    server.settles("ghostserve_images_in_flight{model=\"ghostnetv2-cifar10\"}", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_orientation_in_the_metadata_is_applied() {
    let server = TestServer::start().await;
    let upright = include_bytes!("../goldens/images/jpeg-orientation-1.jpg");
    let rotated = include_bytes!("../goldens/images/jpeg-orientation-6.jpg");
    let (_, a) = server.classify("", &upright[..]).await;
    let (_, b) = server.classify("", &rotated[..]).await;
    assert_eq!(a["results"][0]["image"], b["results"][0]["image"]);
    assert_eq!(predictions(&a, 0)[0]["class"], predictions(&b, 0)[0]["class"]);
}
