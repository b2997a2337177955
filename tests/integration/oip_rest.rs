//! The Open Inference Protocol over REST: tensors get the answers of files, errors have the protocol's form, and models
//! are described.

use ghostserve::cores::Cores;
use ghostserve::model::{EMBEDDED_MODEL, ModelFolder};
use ghostserve::preprocess::{PoolConfig, Preprocessor, Transform};
use ghostserve::row::Row;
use serde_json::{Value, json};

use crate::images::{JPEG, drawn_image};
use crate::server::{TestServer, probabilities};

const MODEL: &str = "/v2/models/ghostnetv2-cifar10";

/// Posts an inference request with binary tensors after the JSON. Returns the answer's status, JSON and binary tensors.
async fn infer(server: &TestServer, path: &str, request: &Value, tensors: &[u8]) -> (u16, Value, Vec<u8>) {
    let json = request.to_string();
    let length = json.len().to_string();
    let body = [json.as_bytes(), tensors].concat();
    let request = server.post(path).header("inference-header-content-length", length).body(body);
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let length =
        response.headers().get("inference-header-content-length").map(|l| l.to_str().unwrap().parse().unwrap());
    let body = response.bytes().await.unwrap();
    let (json, binary) = body.split_at(length.unwrap_or(body.len()));
    let json: Value = serde_json::from_slice(json).unwrap();
    if status != 200 {
        assert_eq!(json.as_object().unwrap().len(), 1, "{json}");
        assert!(!json["error"].as_str().unwrap().is_empty());
    }
    (status, json, binary.to_vec())
}

fn input(datatype: &str, shape: Value, size: usize) -> Value {
    json!({"name": "image", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}})
}

/// The probabilities of one image in class order, as `/v1/classify` gives them.
async fn classified(server: &TestServer, file: &[u8]) -> Vec<f64> {
    let (_, answer) = server.classify("?top_k=10", file.to_vec()).await;
    probabilities(&answer)
}

fn numbers(json: &Value) -> Vec<f64> {
    json["outputs"][0]["data"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
}

fn agree(found: &[f64], expected: &[f64]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_pixels_and_input_tensors_get_the_answer_of_classify() {
    let server = TestServer::start().await;
    let file = drawn_image(120, 90, 3, image::ImageFormat::Png);
    let expected = classified(&server, &file).await;

    // As a file, in the JSON and as binary data after it.
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &file);
    let request =
        json!({"id": "a", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [[base64]]}]});
    let (status, answer, _) = infer(&server, &format!("{MODEL}/infer"), &request, b"").await;
    assert_eq!((status, &answer["id"], &answer["model_version"]), (200, &json!("a"), &json!("1")));
    assert!(agree(&numbers(&answer), &expected), "{answer}");
    assert_eq!(answer["outputs"][0]["shape"], json!([1, 10]));
    let bytes = [&(file.len() as u32).to_le_bytes()[..], &file].concat();
    let request =
        json!({"inputs": [input("BYTES", json!([1]), bytes.len())], "parameters": {"binary_data_output": true}});
    let (_, answer, binary) = infer(&server, &format!("{MODEL}/versions/1/infer"), &request, &bytes).await;
    assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], 40);
    assert!(answer["outputs"][0].get("data").is_none());
    let found: Vec<f64> = binary.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    assert!(agree(&found, &expected), "{found:?}");

    // As pixels, in a batch of two.
    let rgb = image::load_from_memory(&file).unwrap().into_rgb8().into_raw();
    let two = [&rgb[..], &rgb].concat();
    let request = json!({"inputs": [input("UINT8", json!([2, 90, 120, 3]), two.len())]});
    let (_, answer, _) = infer(&server, &format!("{MODEL}/infer"), &request, &two).await;
    assert!(agree(&numbers(&answer), &[&expected[..], &expected].concat()), "{answer}");

    // As the network's input tensor.
    let manifest = ModelFolder::resolve(EMBEDDED_MODEL).unwrap().load().unwrap().manifest;
    let pool = PoolConfig::default();
    let transform = std::sync::Arc::new(Transform::new(manifest.input));
    let crop = Preprocessor::new(pool, Cores::new(1)).run_sync(&transform, &file).unwrap().crop;
    let mut row = vec![0.0f32; crop.elements()];
    crop.write(&mut row);
    let [height, width] = manifest.input.crop;
    let values: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
    let request = json!({"inputs": [input("FP32", json!([1, 3, height, width]), values.len())]});
    let (_, answer, _) = infer(&server, &format!("{MODEL}/infer"), &request, &values).await;
    assert!(agree(&numbers(&answer), &expected), "{answer}");
    let request =
        json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, height, width], "data": row}]});
    let (_, answer, _) = infer(&server, &format!("{MODEL}/infer"), &request, b"").await;
    assert!(agree(&numbers(&answer), &expected), "{answer}");
    let request = json!({"inputs": [input("FP32", json!([1, 3, height, width]), values.len())]});
    let (status, answer, _) = infer(&server, &format!("{MODEL}-features/infer"), &request, &values).await;
    assert_eq!((status, answer["outputs"].as_array().unwrap().len()), (200, 6));

    // Classes instead of numbers, in Triton's format.
    let request = json!({"inputs": [input("BYTES", json!([1]), bytes.len())],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]});
    let (_, answer, _) = infer(&server, &format!("{MODEL}/infer"), &request, &bytes).await;
    assert_eq!((&answer["outputs"][0]["datatype"], &answer["outputs"][0]["shape"]), (&json!("BYTES"), &json!([1, 2])));
    let best = expected.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    let first = answer["outputs"][0]["data"][0].as_str().unwrap();
    let parts: Vec<_> = first.split(':').collect();
    assert!((parts[0].parse::<f64>().unwrap() - best.1).abs() < 1e-6 && parts[1] == best.0.to_string(), "{first}");
    assert!(!parts[2].is_empty());
    server.settles("ghostserve_body_bytes", 0.0).await;
    server.settles("ghostserve_feature_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_protocols_form_and_say_what_is_wrong() {
    let server = TestServer::with(|config| config.request.max_images_per_request = 4).await;
    let file = [&(JPEG.len() as u32).to_le_bytes()[..], JPEG].concat();
    let good = || input("BYTES", json!([1]), file.len());
    let path = format!("{MODEL}/infer");
    let numbers =
        |shape: Value| json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": shape, "data": [1, 2]}]});
    for (path, request, tensors, status, words) in [
        ("/v2/models/x/infer", json!({"inputs": [good()]}), &file[..], 404, "`ghostnetv2-cifar10-features`"),
        ("/v2/models/ghostnetv2-cifar10/versions/2/infer", json!({"inputs": [good()]}), &file, 404, "version"),
        (&path, json!({"inputs": []}), b"", 400, "one input"),
        (&path, json!({"inputs": [good(), good()]}), &[&file[..], &file].concat(), 400, "one input"),
        (&path, json!({"inputs": [good()], "outputs": [{"name": "logits"}]}), &file, 400, "probabilities"),
        (&path, json!({"inputs": [good()], "parameters": {"tempo": 1}}), &file, 400, "`tempo`"),
        (&path, json!({"inputs": [good()], "more": 1}), &file, 400, "more"),
        (&path, json!({"inputs": [good()]}), &file[1..], 400, "binary_data_size"),
        (&path, json!({"inputs": [good()]}), &[&file[..], b"x"].concat(), 400, "follow"),
        (&path, json!({"inputs": [input("BYTES", json!([2]), file.len())]}), &file, 400, "2 images"),
        (&path, json!({"inputs": [input("BYTES", json!([5]), file.len())]}), &file, 413, "5 images"),
        (&path, json!({"inputs": [input("INT64", json!([1, 1]), 8)]}), &[0; 8], 400, "UINT8"),
        (&path, json!({"inputs": [input("UINT8", json!([1, 2, 2, 3]), 11)]}), &[0; 11], 400, "12 elements"),
        (&path, json!({"inputs": [input("UINT8", json!([1, 20000, 20000, 3]), 3)]}), &[0; 3], 400, "elements"),
        (&path, numbers(json!([1, 3, 1, 1])), b"", 400, "elements"),
        (&path, json!({"inputs": [input("BYTES", json!([1]), 6)]}), b"\x02\0\0\0ab", 415, "text"),
    ] {
        let (found, answer, _) = infer(&server, path, &request, tensors).await;
        assert_eq!(found, status, "{request}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer} has no {words}");
    }
    let two = [&file[..], b"\x02\0\0\0ab"].concat();
    let request = json!({"inputs": [input("BYTES", json!([2]), two.len())]});
    let (status, answer, _) = infer(&server, &path, &request, &two).await;
    assert!(status == 415 && answer["error"].as_str().unwrap().starts_with("image 2 of 2: "), "{answer}");
    for body in ["[]", "null", "{"] {
        let response = server.post("/v2/repository/index").body(body).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
    }
    // Unknown routes and methods get errors of the same form.
    for (method, path, status) in [
        (reqwest::Method::GET, "/v2/nothing".to_owned(), 404),
        (reqwest::Method::GET, path.clone(), 405),
        (reqwest::Method::GET, format!("{MODEL}?x=1"), 400),
        (reqwest::Method::POST, format!("/v2/repository{}/load", MODEL.trim_start_matches("/v2")), 400),
    ] {
        let response = server.client.request(method, server.url(&path)).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        let answer: Value = response.json().await.unwrap();
        assert!(answer.as_object().unwrap().len() == 1 && answer["error"].is_string(), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn features_take_their_options_as_parameters() {
    let server = TestServer::start().await;
    let file = [&(JPEG.len() as u32).to_le_bytes()[..], JPEG].concat();
    let path = format!("{MODEL}-features/infer");
    let request = |parameters: Value| {
        json!({"inputs": [input("BYTES", json!([1]), file.len())], "parameters": parameters,
            "outputs": [{"name": "embedding", "parameters": {"binary_data": false}}, {"name": "c3"}]})
    };
    let parameters =
        json!({"size": "96x64", "fit": "letterbox", "dtype": "f32", "normalize": true, "binary_data_output": true});
    let (status, answer, binary) = infer(&server, &path, &request(parameters), &file).await;
    assert_eq!(status, 200, "{answer}");
    let [embedding, map] = [&answer["outputs"][0], &answer["outputs"][1]];
    assert_eq!((&embedding["name"], &map["name"]), (&json!("embedding"), &json!("c3")));
    let norm: f64 = embedding["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap().powi(2)).sum();
    assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    let shape: Vec<usize> = serde_json::from_value(map["shape"].clone()).unwrap();
    assert_eq!((shape[0], shape[2], shape[3]), (1, 8, 12));
    let expected = server.post("/v1/features?levels=c3&size=96x64&fit=letterbox").body(JPEG).send().await.unwrap();
    let expected: Value = expected.json().await.unwrap();
    let data = expected["results"][0]["features"][0]["data"].as_str().unwrap();
    let data = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap();
    assert_eq!(binary, data);

    let half = json!({"dtype": "f16", "binary_data_output": true});
    let half =
        json!({"inputs": [input("BYTES", json!([1]), file.len())], "parameters": half, "outputs": [{"name": "c5"}]});
    let (_, answer, binary) = infer(&server, &path, &half, &file).await;
    assert_eq!((&answer["outputs"][0]["datatype"], binary.len()), (&json!("FP16"), 160 * 2 * 2 * 2));
    for wrong in [json!({"size": "97"}), json!({"fit": "squeeze"}), json!({"dtype": "f16"}), json!({"normalize": 1})] {
        assert_eq!(infer(&server, &path, &request(wrong.clone()), &file).await.0, 400, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_and_its_models_are_described() {
    let server = TestServer::start().await;
    let get = async |path: &str| -> Value { server.get(path).await.json().await.unwrap() };
    let server_metadata = get("/v2").await;
    for extension in ["binary_tensor_data", "statistics", "model_configuration"] {
        assert!(server_metadata["extensions"].as_array().unwrap().contains(&json!(extension)), "{server_metadata}");
    }
    let metadata = get(MODEL).await;
    assert_eq!(metadata["inputs"], json!([{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]));
    assert_eq!(metadata["outputs"], json!([{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]));
    let features = get(&format!("{MODEL}-features/versions/1")).await;
    assert_eq!(features["outputs"][0], json!({"name": "c1", "datatype": "FP32", "shape": [-1, 16, -1, -1]}));
    assert_eq!(features["outputs"][5], json!({"name": "embedding", "datatype": "FP32", "shape": [-1, 1280]}));
    assert_eq!(get(&format!("{MODEL}/config")).await["max_batch_size"], 32);
    for path in ["/v2/health/live", "/v2/health/ready", &format!("{MODEL}/ready"), &format!("{MODEL}/versions/1/ready")]
    {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    let index: Value = server.post("/v2/repository/index").send().await.unwrap().json().await.unwrap();
    assert_eq!((&index[0]["name"], &index[1]["state"]), (&json!("ghostnetv2-cifar10"), &json!("READY")));

    server.classify("", JPEG).await;
    server.classify("", b"broken".to_vec()).await;
    server.post("/v1/features?levels=c5").body(JPEG).send().await.unwrap();
    let all = get("/v2/models/stats").await;
    let [classifier, features] = [&all["model_stats"][0], &all["model_stats"][1]];
    assert_eq!((&classifier["inference_count"], &features["inference_count"]), (&json!(1), &json!(1)));
    assert_eq!((&classifier["execution_count"], &features["execution_count"]), (&json!(1), &json!(1)));
    let durations = &classifier["inference_stats"];
    assert_eq!((&durations["success"]["count"], &durations["fail"]["count"]), (&json!(1), &json!(1)));
    let ns = |name: &str| durations[name]["ns"].as_u64().unwrap();
    assert!(ns("compute_infer") > 0 && ns("success") >= ns("compute_infer") + ns("compute_input"), "{durations}");
    assert_eq!(classifier["batch_stats"][0]["batch_size"], 1);
    assert_eq!(get(&format!("{MODEL}/stats")).await["model_stats"][0]["version"], "1");
}
