//! `ghostserve pull` as a user runs it. The pulled model can be loaded and classifies.

use std::path::Path;
use std::process::Command;

use ghostserve::model::ModelFolder;
use ghostserve::runtime::LIBRARY_ENV;

use crate::fake_hub::{FakeHub, Repository};
use crate::images::JPEG;
use crate::support::synthetic_weights;

/// The program, without the environment variables of this machine that affect `pull`.
fn ghostserve(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostserve"));
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN", "GHOSTSERVE_CACHE"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("HF_ENDPOINT", endpoint).env("XDG_CACHE_HOME", home.join("cache")).current_dir(home);
    command
}

#[test]
fn a_pulled_model_classifies_images() {
    let repository = Repository::new(synthetic_weights());
    let hub = FakeHub::start(move |request, stream| repository.answer(request, stream));
    let home = tempfile::tempdir().unwrap();
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let pull = |arguments: &[&str]| run(ghostserve(home.path(), &hub.url()).arg("pull").args(arguments));

    let (ok, out, err) = pull(&["ghostnetv2_100.in1k"]);
    assert!(ok, "{err}");
    assert!(hub.seen()[0].line.contains("/api/models/timm/ghostnetv2_100.in1k/"), "{:?}", hub.seen());
    assert!(out.contains("ghostserve serve --model ghostnetv2_100.in1k") && out.contains("sha256:"), "{out}");
    assert!(home.path().join("cache/ghostserve/blobs").is_dir());
    let folder = home.path().join("ghostnetv2_100.in1k");
    let loaded = ModelFolder::resolve(folder.to_str().unwrap()).unwrap().load().unwrap();
    assert_eq!((loaded.manifest.id.as_str(), loaded.labels.len()), ("ghostnetv2_100.in1k", 1000));

    std::fs::write(home.path().join("a.jpg"), JPEG).unwrap();
    let runtime = std::env::var_os(LIBRARY_ENV).unwrap();
    let runtime = std::path::absolute(runtime).unwrap();
    let mut classify = ghostserve(home.path(), &hub.url());
    classify.arg("classify").arg(&folder).args(["a.jpg", "--json"]).env(LIBRARY_ENV, runtime);
    let (ok, out, err) = run(&mut classify);
    assert!(ok, "{err}");
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    let wnid = line["predictions"][0]["wnid"].as_str().unwrap();
    assert!(ghostserve_hub::IMAGENET_LABELS.contains(&format!("{wnid}\t")), "{out}");

    let offline = |value: &str| {
        let mut command = ghostserve(home.path(), &hub.url());
        run(command.env("HF_HUB_OFFLINE", value).args(["pull", "ghostnetv2_100.in1k", "-o", "again/and again"]))
    };
    let before = hub.seen().len();
    let (ok, out, err) = offline("1");
    assert!(ok && out.contains("--model 'again/and again'"), "{out}{err}");
    assert_eq!(hub.seen().len(), before);
    let (ok, out, _) = offline("0");
    assert!(ok && out.contains("already there, unchanged") && hub.seen().len() == before + 1, "{out}");
    let (ok, _, err) = pull(&["--offline", "ghostnetv2_130.in1k"]);
    assert!(!ok && err.contains("timm/ghostnetv2_130.in1k@main is not in the cache"), "{err}");
    let (ok, _, err) = pull(&["ghostnet"]);
    assert!(!ok && err.contains("ghostnetv2_160.in1k") && err.contains("owner/repository"), "{err}");
}
