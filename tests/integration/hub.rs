//! Pulling models from a correct hub and from faulty ones.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ghostserve_hub::{FolderOutcome, Proxies, Token};
use ghostserve_manifest::{Digest, MANIFEST_FILE, Manifest, parse_labels};
use serde_json::json;

use crate::fake_hub::{COMMIT, FakeHub, Repository, Request, User, head, reply};

/// A correct hub, except that `weights` answers the requests for weights.
fn hub_with(weights: impl Fn(&Repository, &Request, &mut TcpStream) + Send + Sync + 'static) -> FakeHub {
    let repository = Repository::with_arbitrary_bytes();
    FakeHub::start(move |request, stream| {
        if request.is_for_weights() {
            weights(&repository, request, stream)
        } else {
            repository.answer(request, stream)
        }
    })
}

fn good_hub() -> FakeHub {
    hub_with(|repository, request, stream| repository.answer(request, stream))
}

#[test]
fn a_folder_is_written_once_and_verified() {
    let hub = good_hub();
    let mut user = User::of(&hub.url());
    let pulled = user.pull().unwrap();
    let expected = Repository::with_arbitrary_bytes().weights;
    assert_eq!((pulled.outcome, &pulled.commit[..], pulled.size), (FolderOutcome::Written, COMMIT, 300_000));
    assert_eq!(user.weights(), expected);

    let text = std::fs::read_to_string(user.folder().join(MANIFEST_FILE)).unwrap();
    let manifest = Manifest::parse(&text).unwrap();
    assert_eq!(manifest, pulled.manifest);
    assert_eq!((manifest.network.digest, manifest.input.resize), (Some(Digest::of(&expected)), 256.into()));
    for words in ["me/net-in1k", COMMIT, "model.safetensors", "apache-2.0"] {
        assert!(text.lines().any(|line| line.starts_with('#') && line.contains(words)), "{words}: {text}");
    }
    let labels = parse_labels(&std::fs::read_to_string(user.folder().join("labels.txt")).unwrap()).unwrap();
    assert_eq!((labels.len(), labels[0].wnid.as_deref()), (1000, Some("n01440764")));
    assert!(hub.seen().iter().any(|r| r.line.contains("/api/models/me/net-in1k/revision/main?blobs=true")));
    assert!(hub.weights_requests()[0].line.contains(&format!("/me/net-in1k/resolve/{COMMIT}/model.safetensors")));
    assert!(user.saw("Started") && user.saw("Position(300000)") && user.saw("Finished"));

    // A second pull requests the branch but no files. Offline, it requests nothing.
    assert_eq!(user.pull().unwrap().outcome, FolderOutcome::Unchanged);
    let before = hub.seen().len();
    user.settings.offline = true;
    std::fs::remove_dir_all(user.folder()).unwrap();
    assert_eq!(user.pull().unwrap().outcome, FolderOutcome::Written);
    assert_eq!(user.weights(), expected);
    assert_eq!((hub.weights_requests().len(), hub.seen().len()), (1, before));

    // A damaged file in the cache is detected: offline this is an error, online the file is downloaded again.
    let blob = user.blobs().into_iter().find(|name| name.starts_with("sha256-")).unwrap();
    std::fs::remove_dir_all(user.folder()).unwrap();
    std::fs::write(user.settings.cache.join("blobs").join(blob), "rubbish").unwrap();
    assert!(user.pull_error().contains("model.safetensors of me/net-in1k is not in the cache"));
    user.settings.offline = false;
    user.pull().unwrap();
    assert_eq!(user.weights(), expected);
}

#[test]
fn a_folder_with_other_content_is_not_touched_without_force() {
    let user = User::of(&good_hub().url());
    std::fs::create_dir(user.folder()).unwrap();
    std::fs::write(user.folder().join(MANIFEST_FILE), "mine").unwrap();
    std::fs::write(user.folder().join("notes.txt"), "mine too").unwrap();
    let error = user.pull().unwrap_err().to_string();
    assert!(error.contains("its manifest.toml") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read(user.folder().join(MANIFEST_FILE)).unwrap(), b"mine");
    assert_eq!(user.pull_with("me/net-in1k", None, true).unwrap().outcome, FolderOutcome::Replaced);
    assert_eq!(user.pull().unwrap().outcome, FolderOutcome::Unchanged);
    assert!(user.folder().join("notes.txt").is_file(), "files that are not the model's stay");
}

#[test]
fn an_interrupted_download_resumes_where_it_stopped() {
    let hub = hub_with(|repository, request, stream| match request.earlier {
        0 => {
            head(stream, "200 OK", "Content-Length: 300000\r\nETag: \"one\"\r\n");
            stream.write_all(&repository.weights[..100_000]).unwrap();
        }
        _ => repository.answer(request, stream),
    });
    let user = User::of(&hub.url());
    user.pull().unwrap();
    assert_eq!(user.weights(), Repository::with_arbitrary_bytes().weights);
    let requests = hub.weights_requests();
    assert_eq!(requests.iter().map(Request::range_start).collect::<Vec<_>>(), [None, Some(100_000)]);
    assert_eq!(requests[1].header("if-range"), Some("\"one\""));
    assert!(user.saw("Retrying"));
}

#[test]
fn a_later_pull_resumes_and_repairs_a_damaged_part() {
    let hub = hub_with(|repository, request, stream| match request.earlier {
        0..3 => {
            head(stream, "200 OK", "Content-Length: 300000\r\n");
            stream.write_all(&repository.weights[..100_000]).unwrap();
        }
        _ => repository.answer(request, stream),
    });
    let user = User::of(&hub.url());
    let error = user.pull_error();
    assert!(error.contains("gave up after 3 attempts") && error.contains("pull again"), "{error}");
    assert_eq!(user.parts(), 1);
    let part = user.blobs().into_iter().find(|name| name.ends_with(".part")).unwrap();
    std::fs::write(user.settings.cache.join("blobs").join(part), [7; 50_000]).unwrap();
    user.pull().unwrap();
    assert_eq!(user.weights(), Repository::with_arbitrary_bytes().weights);
    let from: Vec<_> = hub.weights_requests()[3..].iter().map(Request::range_start).collect();
    assert_eq!(from, [Some(50_000), None], "resumed, found to be damaged, downloaded from the start");
}

#[test]
fn a_download_without_range_support_starts_again() {
    for second in ["200 OK", "206 Partial Content", "416 Range Not Satisfiable"] {
        let hub = hub_with(move |repository, request, stream| match request.earlier {
            0 => {
                head(stream, "200 OK", "Content-Length: 300000\r\n");
                stream.write_all(&repository.weights[..100_000]).unwrap();
            }
            // A 206 that begins at another byte than requested does not continue the file.
            1 => reply(stream, second, "Content-Range: bytes 0-299999/300000\r\n", &repository.weights),
            _ => repository.answer(request, stream),
        });
        let user = User::of(&hub.url());
        user.pull().unwrap();
        assert_eq!(user.weights(), Repository::with_arbitrary_bytes().weights, "{second}");
        assert_eq!(hub.weights_requests()[1].range_start(), Some(100_000));
    }
}

#[test]
fn a_changed_byte_is_detected_and_the_file_is_discarded() {
    let hub = hub_with(|repository, _, stream| {
        let mut weights = repository.weights.clone();
        weights[12_345] ^= 1;
        reply(stream, "200 OK", "", &weights);
    });
    let user = User::of(&hub.url());
    let error = user.pull_error();
    assert!(error.contains("model.safetensors is damaged: expected sha256:"), "{error}");
    assert_eq!((user.parts(), hub.weights_requests().len()), (0, 1));

    // The configuration is verified too, by its git digest.
    let mut repository = Repository::with_arbitrary_bytes();
    repository.config["num_classes"] = 1001.into();
    let hub = FakeHub::start(move |request, stream| repository.answer(request, stream));
    let error = User::of(&hub.url()).pull_error();
    assert!(error.contains("config.json is damaged: expected git object"), "{error}");
}

#[test]
fn bodies_of_another_size_than_declared_are_refused() {
    let endless = hub_with(|_, _, stream| {
        head(stream, "200 OK", "Transfer-Encoding: chunked\r\n");
        while stream.write_all(&[b"10000\r\n", &[0; 65536][..], b"\r\n"].concat()).is_ok() {}
    });
    let longer = hub_with(|repository, _, stream| {
        reply(stream, "200 OK", "", &[&repository.weights[..], b"x"].concat());
    });
    for hub in [endless, longer] {
        let user = User::of(&hub.url());
        let error = user.pull_error();
        assert!(error.contains("expected 300000 bytes, found more"), "{error}");
        assert_eq!((user.parts(), hub.weights_requests().len()), (0, 1));
    }
    let shorter = hub_with(|repository, request, stream| {
        let from = request.range_start().unwrap_or(0).min(200_000);
        let range = format!("Content-Range: bytes {from}-199999/300000\r\n");
        let status = if request.range_start().is_some() { "206 Partial Content" } else { "200 OK" };
        reply(stream, status, &range, &repository.weights[from..200_000]);
    });
    let error = User::of(&shorter.url()).pull_error();
    assert!(error.contains("it ended after 200000 of 300000 bytes"), "{error}");

    let mut user = User::of(&good_hub().url());
    user.settings.limits.max_file_size = 1000;
    assert!(user.pull_error().contains("expected at most 1000 bytes, found 300000"));
}

#[test]
fn the_token_is_sent_to_the_hub_but_not_to_redirect_targets() {
    let storage = good_hub();
    let url = storage.url();
    let hub = hub_with(move |_, request, stream| {
        let path = request.line.split(' ').nth(1).unwrap();
        let headers =
            format!("Location: {url}{path}?signature=1\r\nX-Linked-Size: 300000\r\nX-Repo-Commit: {COMMIT}\r\n");
        reply(stream, "302 Found", &headers, b"");
    });
    let mut user = User::of(&hub.url());
    user.settings.token = Token::new("hf_secret");
    user.pull().unwrap();
    assert_eq!(user.weights(), Repository::with_arbitrary_bytes().weights);
    assert!(hub.seen().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")), "{:?}", hub.seen());
    assert_eq!(storage.seen().len(), 1);
    assert!(!format!("{:?}", storage.seen()).contains("secret"));
}

#[test]
fn redirections_are_limited_in_number_and_to_http() {
    for (location, words) in [
        ("/resolve/again", "more than 5 redirections"),
        ("ftp://127.0.0.1/x?signature=1", "no http(s) address: `ftp://127.0.0.1/x`"),
        ("file:///etc/passwd", "no http(s) address"),
    ] {
        let hub = hub_with(move |_, _, stream| reply(stream, "302 Found", &format!("Location: {location}\r\n"), b""));
        let error = User::of(&hub.url()).pull_error();
        assert!(error.contains(words), "{error}");
        assert!(hub.weights_requests().len() <= 6);
    }
    let other = hub_with(|_, _, stream| reply(stream, "200 OK", "X-Repo-Commit: another\r\n", b""));
    let error = User::of(&other.url()).pull_error();
    assert!(error.contains("expected x-repo-commit: 0123"), "{error}");
}

#[test]
fn a_stalled_download_is_retried() {
    let hub = hub_with(|repository, request, stream| {
        if request.earlier == 0 {
            head(stream, "200 OK", "Content-Length: 300000\r\n");
            stream.write_all(&repository.weights[..1000]).unwrap();
        }
        // The second request gets no response before the timeout.
        if request.earlier < 2 {
            std::thread::sleep(Duration::from_secs(10));
        }
        repository.answer(request, stream);
    });
    let mut user = User::of(&hub.url());
    user.settings.limits.stall_timeout = Duration::from_millis(300);
    let start = Instant::now();
    user.pull().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(
        hub.weights_requests().iter().map(Request::range_start).collect::<Vec<_>>(),
        [None, Some(1000), Some(1000)]
    );
    assert_eq!(user.weights(), Repository::with_arbitrary_bytes().weights);
}

#[test]
fn a_refusal_says_what_to_do_and_is_not_retried() {
    for (status, header, words) in [
        ("404 Not Found", "", "the hub has no me/net-in1k@main"),
        ("401 Unauthorized", "", "check the name, or set HF_TOKEN"),
        ("403 Forbidden", "X-Error-Code: GatedRepo\r\n", "accept its conditions on the hub, then set HF_TOKEN"),
        ("418 I'm a teapot", "", "answered 418"),
        ("429 Too Many Requests", "Retry-After: 3600\r\n", "asks to come back in 3600 s"),
    ] {
        let hub = FakeHub::start(move |_, stream| reply(stream, status, header, b""));
        let error = User::of(&hub.url()).pull_error();
        assert!(error.contains(words), "{status}: {error}");
        assert_eq!(hub.seen().len(), 1, "{status}");
    }
    let hub = FakeHub::start(|_, stream| reply(stream, "503 Service Unavailable", "", b""));
    assert!(User::of(&hub.url()).pull_error().contains("the answer was 503 (gave up after 3 attempts"));
    assert_eq!(hub.seen().len(), 3);
}

#[test]
fn a_failing_hub_is_retried_after_the_time_it_names() {
    let hub = hub_with(|repository, request, stream| match request.earlier {
        0 => reply(stream, "500 Internal Server Error", "", b""),
        1 => reply(stream, "429 Too Many Requests", "Retry-After: 1\r\n", b""),
        _ => repository.answer(request, stream),
    });
    let user = User::of(&hub.url());
    let start = Instant::now();
    user.pull().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(hub.weights_requests().len(), 3);
}

#[test]
fn invalid_descriptions_are_refused() {
    let good = Repository::with_arbitrary_bytes().description;
    let with = |pointer: &str, value: serde_json::Value| {
        let mut description = good.clone();
        *description.pointer_mut(pointer).unwrap() = value;
        description.to_string()
    };
    for (description, words) in [
        ("<html>".to_owned(), "not a description"),
        (with("/sha", json!("../../x")), "`sha` is no commit"),
        (with("/siblings/1/rfilename", json!("../../model.safetensors")), "a file is called `../../model.safetensors`"),
        (with("/siblings/1/rfilename", json!("model.onnx")), "no model.safetensors"),
        (with("/siblings/1/lfs/sha256", json!("../x")), "no SHA-256"),
        (with("/siblings/1/lfs/size", json!(u64::MAX)), "expected at most 4294967296 bytes"),
        (with("/siblings/0", json!({"rfilename": "x"})), "no file config.json"),
    ] {
        let repository = Repository::with_arbitrary_bytes();
        let hub = FakeHub::start(move |request, stream| {
            if request.line.contains("/api/") {
                reply(stream, "200 OK", "", description.as_bytes());
            } else {
                repository.answer(request, stream);
            }
        });
        let error = User::of(&hub.url()).pull_error();
        assert!(error.contains(words), "{words}: {error}");
        assert!(hub.weights_requests().is_empty(), "{words}");
    }
    assert!(User::of("hub.example").pull_error().contains("endpoint: expected an http:// or https:// address"));
}

#[test]
fn offline_no_request_is_sent() {
    let hub = good_hub();
    let mut user = User::of(&hub.url());
    user.settings.offline = true;
    let error = user.pull_error();
    assert!(error.contains("me/net-in1k@main is not in the cache") && error.contains("--offline"), "{error}");
    assert!(hub.seen().is_empty());
}

#[test]
fn two_simultaneous_pulls_download_once() {
    let hub = hub_with(|repository, request, stream| {
        std::thread::sleep(Duration::from_millis(500));
        repository.answer(request, stream);
    });
    let user = User::of(&hub.url());
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..2).map(|_| scope.spawn(|| user.pull().unwrap())).collect();
        pulls.into_iter().for_each(|pull| drop(pull.join().unwrap()));
    });
    assert_eq!(user.weights(), Repository::with_arbitrary_bytes().weights);
    assert_eq!(hub.weights_requests().len(), 1);
    assert!(user.saw("Waiting"));
}

#[test]
fn a_proxy_is_used_except_for_excluded_hosts() {
    let hub = good_hub();
    // Opens a tunnel to the requested address and records the request.
    let proxy = FakeHub::start(|request, stream| {
        let Some(target) = request.line.strip_prefix("CONNECT ").and_then(|l| l.split(' ').next()) else { return };
        let mut upstream = TcpStream::connect(target).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut from, mut to) = (stream.try_clone().unwrap(), upstream.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut upstream, stream);
    });
    let mut user = User::of(&hub.url());
    user.settings.proxies = Proxies { http: Some(proxy.url()), ..Proxies::default() };
    user.pull().unwrap();
    assert_eq!((hub.seen().len(), proxy.seen().len()), (3, 3), "{:?}", proxy.seen());

    let mut user = User::of(&hub.url());
    user.settings.proxies = Proxies { http: Some(proxy.url()), none: "127.0.0.1".into(), ..Proxies::default() };
    user.pull().unwrap();
    assert_eq!((hub.seen().len(), proxy.seen().len()), (6, 3));
}
