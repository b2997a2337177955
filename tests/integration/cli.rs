//! The program: its subcommands as a user runs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::ImageFormat;

use crate::images::{JPEG, drawn_image, png_header, png_profile_bomb};

fn ghostserve() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ghostserve"))
}

pub(crate) fn run(arguments: &[&str]) -> (bool, String, String) {
    let Output { status, stdout, stderr } = ghostserve().args(arguments).output().unwrap();
    (status.success(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn inspect_prints_the_published_counts() {
    for (name, parameters, macs) in [
        ("ghostnetv2_100", "6,156,908", "167,048,288"),
        ("ghostnetv2_130", "8,960,404", "269,322,976"),
        ("ghostnetv2_160", "12,392,698", "398,607,224"),
    ] {
        let (ok, out, _) = run(&["inspect", name]);
        assert!(ok && out.contains(parameters) && out.contains(macs), "{out}");
        assert!(out.contains("blocks.6.4"), "{out}");
    }
    let (ok, out, _) = run(&["inspect", "ghostnetv2-cifar10"]);
    assert!(ok && out.contains("classes       10"), "{out}");
    let (ok, _, err) = run(&["inspect", "nothing"]);
    assert!(!ok && err.contains("`nothing`") && err.contains("ghostnetv2_160"), "{err}");
}

#[test]
fn inspect_shows_attention_and_padding() {
    let (ok, out, _) = run(&["inspect", "ghostnetv2_100", "--block", "16"]);
    let row = out.lines().find(|l| l.starts_with("blocks.2.0")).unwrap();
    assert!(ok && row.contains("DFC5") && row.ends_with("72+8*  24+8"), "{row}");
    let variant = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/variants/stride_8.toml");
    let (ok, out, _) = run(&["inspect", variant, "--size", "96x128"]);
    let row = out.lines().find(|l| l.starts_with("blocks.8.3")).unwrap();
    assert!(ok && row.contains(" 8     12x16 "), "{row}");
}

#[test]
fn build_writes_a_model_that_is_served_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("small.toml"), "base = \"ghostnetv2_100\"\nwidth = 0.25\nclasses = 3\n").unwrap();
    let (ok, out, err) = run(&[
        "build",
        &path("small.toml"),
        "--init",
        "random",
        "--seed",
        "7",
        "--size",
        "64",
        "-o",
        &path("model.onnx"),
    ]);
    assert!(ok && out.contains("64x64, logits"), "{out}{err}");
    let bytes = std::fs::read(path("model.onnx")).unwrap();
    std::fs::write(path("labels.txt"), "a\nb\nc\n").unwrap();
    let digest = ghostserve_manifest::Digest::of(&bytes);
    let manifest = format!(
        "id = \"built\"\n[network]\narchitecture = \"onnx\"\nweights = \"model.onnx\"\ndigest = \"{digest}\"\n[input]\n\
         size = [64, 64]\nresize = 64\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n[labels]\nfile = \"labels.txt\"\n"
    );
    std::fs::write(path("manifest.toml"), manifest).unwrap();
    std::fs::write(path("photo.jpg"), JPEG).unwrap();
    let (ok, out, err) = run(&["classify", folder.path().to_str().unwrap(), &path("photo.jpg"), "--json"]);
    assert!(ok && out.contains("\"label\""), "{out}{err}");

    for (arguments, expected) in [
        (vec!["build", "ghostnetv2_100", "-o", "x"], "--init random"),
        (vec!["build", "ghostnetv2_1000", "--init", "random", "-o", "x"], "ghostnetv2_100"),
        (vec!["build", "ghostnetv2_100", "--init", "random", "--outputs", "c9", "-o", "x"], "`c1` to `c5`"),
        (vec!["build", "ghostnet_100", "--init", "random", "--outputs", "attention.2.0", "-o", "x"], "has no output"),
        (vec!["build", "ghostnetv2_100", "--weights", &path("photo.jpg"), "-o", "x"], "photo.jpg"),
    ] {
        let (ok, _, err) = run(&arguments);
        assert!(!ok && err.contains(expected), "{arguments:?}: {err}");
    }
}

#[test]
fn classify_needs_no_server_and_one_bad_file_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.jpg"), folder.path().join("bad.jpg"));
    std::fs::write(&good, JPEG).unwrap();
    std::fs::write(&bad, "no image").unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());

    let (ok, out, err) = run(&["classify", "ghostnetv2-cifar10", bad, good, "--json", "--top-k", "2"]);
    assert!(!ok, "a file failed");
    assert!(err.contains("bad.jpg") && err.contains("the file is text"), "{err}");
    let line: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!(line["predictions"].as_array().unwrap().len(), 2);
    let (ok, out, _) = run(&["classify", "ghostnetv2-cifar10", good]);
    assert!(ok && out.contains("good.jpg (JPEG, 96x80)") && out.contains('%'), "{out}");
}

#[test]
fn eval_counts_by_class_and_names_unusable_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    for (class, images) in [("cat", 3), ("ship", 2)] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        for i in 0..images {
            let file = folder.path().join(class).join(format!("{i}.png"));
            std::fs::write(file, drawn_image(32, 32, i, ImageFormat::Png)).unwrap();
        }
    }
    let path = folder.path().to_str().unwrap();
    let (ok, out, err) = run(&["eval", "ghostnetv2-cifar10", path, "--json"]);
    assert!(ok, "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["all"]["images"], 5);
    assert_eq!(report["classes"][3]["images"], 3);
    // Both classes have the same images, so at most three of the five can be right.
    assert!(report["all"]["top1"].as_u64().unwrap() <= 3);

    std::fs::write(folder.path().join("cat/broken.jpg"), &JPEG[..500]).unwrap();
    let (ok, out, _) = run(&["eval", "ghostnetv2-cifar10", path]);
    assert!(!ok && out.contains("broken.jpg") && out.contains("cat"), "{out}");

    std::fs::create_dir(folder.path().join("dragon")).unwrap();
    let (ok, _, err) = run(&["eval", "ghostnetv2-cifar10", path]);
    assert!(!ok && err.contains("`dragon`") && err.contains("`airplane`"), "{err}");
}

#[test]
fn invalid_settings_are_refused_with_the_name_of_their_flag() {
    for (arguments, words) in [
        (&["--workers", "0"][..], "--workers must be at least 1"),
        (&["--max-images-in-flight", "4"], "--max-images-per-request"),
        (&["--max-multi-body-bytes", "1MiB"], "--max-body-bytes"),
        (&["--max-decoded-bytes-in-flight", "10MiB"], "--max-image-pixels"),
        (&["--body-timeout", "10"], "250ms, 5s, 2m"),
        (&["--max-body-bytes", "10MB"], "KiB, MiB or GiB"),
        (&["--log", "ghostserve=loud"], "--log"),
        (&["--onnxruntime", "no/such/library.so"], "make runtime"),
    ] {
        let (ok, _, err) = run(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat());
        assert!(!ok && err.contains(words), "{arguments:?}: {err}");
    }
}

/// A server in its own process, killed if the test fails.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the server on a free port. Returns it with its address and the rest of its log.
    pub(crate) fn start(extra: &[&str]) -> (Self, String, impl Iterator<Item = String> + use<>) {
        let mut child = ghostserve()
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--drain-grace", "200ms"])
            .args(extra)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let ready = lines.find(|line| line.contains("ready")).expect("it starts");
        let ready: serde_json::Value = serde_json::from_str(&ready).expect("a line is a JSON object");
        (Self(child), ready["address"].as_str().unwrap().to_owned(), lines)
    }

    /// Makes the server drain and exit. The exit status must be success.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn post(address: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "POST /v1/classify HTTP/1.1\r\nHost: x\r\nx-request-id: the-id\r\nConnection: close\r\n").unwrap();
    write!(stream, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn serve_answers_health_checks_and_drains_on_sigterm() {
    let (mut process, address, log) = Process::start(&[]);
    let health = |check| run(&["health", "--listen", &address, "--check", check]);
    assert_eq!(health("ready"), (true, "ok\n".into(), String::new()));
    assert!(health("live").0);
    assert!(post(&address, JPEG).starts_with("HTTP/1.1 200"));

    process.signal("TERM");
    let start = Instant::now();
    let mut drained = false;
    while start.elapsed() < Duration::from_millis(150) && !drained {
        drained = health("ready").2.contains("draining");
    }
    assert!(drained, "readiness fails while requests are still served");
    let status = process.0.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(5));

    let log: Vec<_> = log.collect();
    let line = log.iter().find(|line| line.contains("/v1/classify")).expect("one line a request");
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["status"], &line["span"]["request_id"]), (&200.into(), &"the-id".into()));
    assert!(log.iter().any(|line| line.contains("stopped")), "{log:?}");
    let (ok, _, err) = health("ready");
    assert!(!ok && err.contains("no answer from"), "{err}");
}

#[test]
fn unrelated_signals_do_not_stop_the_server() {
    let (mut process, address, log) = Process::start(&[]);
    for signal in ["HUP", "USR1", "USR2", "ALRM"] {
        process.signal(signal);
        assert!(post(&address, JPEG).starts_with("HTTP/1.1 200"), "{signal}");
    }
    // SIGQUIT stops the server as SIGTERM does.
    process.signal("QUIT");
    let status = process.0.wait().unwrap();
    assert!(status.success(), "{status}");
    let log: Vec<_> = log.collect();
    assert!(log.iter().any(|line| line.contains("SIGHUP") && line.contains("nothing to reload")), "{log:?}");
}

/// Peak resident memory of a process, bytes.
#[cfg(target_os = "linux")]
fn peak_memory(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn decompression_bombs_do_not_raise_peak_memory() {
    let (process, address, _log) = Process::start(&[]);
    assert!(post(&address, JPEG).starts_with("HTTP/1.1 200"));
    let before = peak_memory(&process);
    assert!(post(&address, &png_header(16_384, 16_384)).starts_with("HTTP/1.1 413"));
    // The declared size is true and the pixels are valid; only the colour profile is a bomb.
    assert!(post(&address, &png_profile_bomb()).starts_with("HTTP/1.1 200"));
    let growth = peak_memory(&process) - before;
    assert!(growth < 50_000_000, "grew by {growth} bytes");
}

#[test]
fn every_flag_has_an_environment_variable() {
    let (_, help, _) = run(&["serve", "--help"]);
    let flags = help.lines().filter_map(|line| line.trim().strip_prefix("--")).filter(|l| !l.starts_with("help"));
    let mut count = 0;
    for flag in flags {
        let name = flag.split([' ', '=']).next().unwrap();
        // OpenTelemetry names the variables of settings that every service has.
        let variable = match name {
            "otlp-endpoint" | "otlp-protocol" => format!("OTEL_EXPORTER_{}", name.to_uppercase().replace('-', "_")),
            "service-name" => "OTEL_SERVICE_NAME".to_owned(),
            _ => format!("GHOSTSERVE_{}", name.to_uppercase().replace('-', "_")),
        };
        assert!(help.contains(&format!("[env: {variable}=")), "{variable}");
        count += 1;
    }
    assert!(count > 25, "{count}");
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md").is_file());
}
