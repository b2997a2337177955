//! The program: its subcommands as a user runs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::ImageFormat;

use crate::images::{JPEG, drawn_image, png_header, png_profile_bomb};

/// The program, without the variables of these tests: it warns about those that are no settings.
fn ghostserve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostserve"));
    command.env_remove("GHOSTSERVE_CLIENTS_PYTHON").env_remove("GHOSTSERVE_NODE_MODULES");
    command
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
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["file"]), (2, &bad.into()));
    assert!(lines[0]["error"].as_str().unwrap().contains("the file is text"), "{out}");
    assert_eq!((&lines[1]["image"]["width"], lines[1]["predictions"].as_array().unwrap().len()), (&96.into(), 2));
    assert_eq!((lines[0].get("predictions"), lines[1].get("error")), (None, None));
    let (ok, out, _) = run(&["classify", "ghostnetv2-cifar10", good]);
    assert!(ok && out.contains("good.jpg (JPEG, 96x80)") && out.contains('%'), "{out}");
}

#[test]
fn classify_takes_the_images_of_a_folder_in_order() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("more")).unwrap();
    for name in ["b.JPG", "a.jpeg", "more/c.jpg", "notes.txt", ".hidden.jpg"] {
        std::fs::write(folder.path().join(name), JPEG).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    let (ok, out, err) = run(&["classify", "ghostnetv2-cifar10", path, "--json", "--top-k", "1"]);
    assert!(ok && err.contains("left out 1 file") && err.contains("notes.txt"), "{err}");
    let lines = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let names: Vec<_> = lines.map(|line| line["file"].as_str().unwrap()[path.len() + 1..].to_owned()).collect();
    assert_eq!(names, ["a.jpeg", "b.JPG", "more/c.jpg"]);

    let empty = tempfile::tempdir().unwrap();
    let (ok, _, err) = run(&["classify", "ghostnetv2-cifar10", empty.path().to_str().unwrap()]);
    assert!(!ok && err.contains("holds no file that ends like an image"), "{err}");
    let (ok, _, err) = run(&["classify", "ghostnetv2-cifar10", path, "--top-k", "0"]);
    assert!(!ok && err.contains("--top-k") && err.contains("1 or more"), "{err}");
}

#[test]
#[cfg(target_os = "linux")]
fn files_whose_names_are_no_text_are_classified_too() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"b\xe9.jpg")), JPEG).unwrap();
    let (ok, out, err) = run(&["classify", "ghostnetv2-cifar10", folder.path().to_str().unwrap(), "--json"]);
    assert!(ok, "{err}");
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(line["file"].as_str().unwrap().ends_with("b\u{fffd}.jpg") && line["predictions"].is_array(), "{line}");
}

#[test]
fn inspect_prints_the_table_as_json() {
    let (ok, out, err) = run(&["inspect", "ghostnetv2_100", "--block", "16", "--json"]);
    assert!(ok, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["architecture"], &json["parameters"]), (&"ghostnetv2_100".into(), &6_156_908.into()));
    assert_eq!(json["input"], serde_json::json!({"channels": 3, "height": 224, "width": 224}));
    assert!(json["model"].is_null() && json["error"].is_null(), "{out}");
    let layers = json["layers"].as_array().unwrap();
    let row = layers.iter().find(|layer| layer["layer"] == "blocks.2.0").unwrap();
    let first = serde_json::json!({"channels": 72, "padding": 8, "shared_block": true});
    assert_eq!((&row["ghost_modules"][0], &row["stride"]), (&first, &4.into()));
    assert!(layers.iter().any(|layer| layer["stride"].is_null()), "the classifier has no pixels: {out}");

    let (_, out, _) = run(&["inspect", "ghostnetv2-cifar10", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["model"]["id"], &json["model"]["classes"]), (&"ghostnetv2-cifar10".into(), &10.into()));
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
    assert_eq!((&report["model"], report["left_out"].as_array().unwrap().len()), (&"ghostnetv2-cifar10".into(), 0));
    assert!(err.is_empty(), "{err}");
    assert_eq!(report["classes"][3]["images"], 3);
    // Both classes have the same images, so at most three of the five can be right.
    assert!(report["all"]["top1"].as_u64().unwrap() <= 3);

    std::fs::write(folder.path().join("cat/broken.jpg"), &JPEG[..500]).unwrap();
    let (ok, out, _) = run(&["eval", "ghostnetv2-cifar10", path]);
    assert!(!ok && out.contains("broken.jpg") && out.contains("cat"), "{out}");

    // What is no image of a class is named, not counted.
    std::fs::write(folder.path().join("cat.png"), JPEG).unwrap();
    std::fs::write(folder.path().join("cat/notes.txt"), "from the zoo").unwrap();
    std::fs::create_dir_all(folder.path().join("cat/old")).unwrap();
    std::fs::create_dir(folder.path().join("dragon")).unwrap();
    let (_, out, err) = run(&["eval", "ghostnetv2-cifar10", path, "--json"]);
    assert!(err.contains("left out 4") && err.contains("such as") && err.contains("cat"), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["all"]["images"], report["left_out"].as_array().unwrap().len()), (&5.into(), 4));
    assert!(report["failed"][0]["file"].as_str().unwrap().ends_with("broken.jpg"), "{out}");

    // Images of something that the model does not know would be missing from the result.
    std::fs::write(folder.path().join("dragon/1.jpg"), JPEG).unwrap();
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

/// The first sequence of four words that is in a text twice. Numbers and paths are no words.
fn repeated_phrase(text: &str) -> Option<String> {
    let clean = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let words: Vec<_> = text.split_whitespace().map(clean).filter(|word| !word.is_empty()).collect();
    let phrases: Vec<_> = words.windows(4).collect();
    let repeated = phrases.iter().enumerate().find(|(i, phrase)| phrases[..*i].contains(phrase));
    repeated.map(|(_, phrase)| phrase.join(" "))
}

#[test]
fn no_error_says_anything_twice() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let manifest = |weights: &str| {
        let digest = ghostserve_manifest::Digest::of(weights.as_bytes());
        format!(
            "id = \"m\"\n[network]\narchitecture = \"ghostnetv2_100\"\nweights = \"weights\"\ndigest = \"{digest}\"\n\
             [input]\nsize = [224, 224]\nresize = 256\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n[labels]\nfile = \
             \"labels.txt\"\n"
        )
    };
    for (name, text, weights) in [
        ("syntax", "id = ".to_owned(), None),
        ("field", manifest("").replace("resize = 256", "resize = 1"), None),
        ("no-labels", manifest("w"), None),
        ("no-weights", manifest("w"), None),
        ("bad-weights", manifest("w"), Some("w")),
        ("digest", manifest("w"), Some("other")),
    ] {
        write(&format!("{name}/manifest.toml"), text.as_bytes());
        if name != "no-labels" {
            write(&format!("{name}/labels.txt"), b"a\nb\n");
        }
        if let Some(weights) = weights {
            write(&format!("{name}/weights"), weights.as_bytes());
        }
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (text, bad_toml) = (write("text.jpg", b"no image"), write("bad.toml", b"width = "));
    let unknown = write("unknown.toml", b"base = \"ghostnetv2_100\"\nwidht = 1\n");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let model = "ghostnetv2-cifar10";
    let mut failing: Vec<Vec<&str>> = vec![
        vec!["serve", "--listen", &taken, "--no-calibration"],
        vec!["serve", "--listen", "nothing"],
        vec!["serve", "--listen", "127.0.0.1:0", "--onnxruntime", "/no/such/library.so"],
        vec!["serve", "--listen", "127.0.0.1:0", "--onnxruntime", &text],
        vec!["serve", "--listen", "127.0.0.1:0", "--log", "ghostserve=loud"],
        vec!["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", "collector"],
        vec!["serve", "--max-body-bytes", "10MB"],
        vec!["classify", model, "/no/such/file.jpg"],
        vec!["classify", model, &text],
        vec!["classify", "/no/such/model", &text],
        vec!["eval", model, "/no/such/folder"],
        vec!["eval", model, &text],
        vec!["inspect", "nothing"],
        vec!["inspect", &bad_toml],
        vec!["inspect", &unknown],
        vec!["inspect", "/no/such/file.toml"],
        vec!["build", "ghostnetv2_100", "--weights", &text, "-o", "x"],
        vec!["build", "ghostnetv2_100", "--weights", "/no/such/file", "-o", "x"],
        vec!["build", "ghostnetv2_100", "--init", "random", "-o", "/no/such/folder/x", "--size", "32"],
        vec!["health", "--listen", "127.0.0.1:1"],
        vec!["bench", "ftp://nothing/"],
        vec!["bench", "http://127.0.0.1:1/", "-d", "1s"],
        vec!["bench", "--images", "/no/such/folder"],
        vec!["bench", "--images", "/no/such/folder", "--rate", "0"],
        vec!["pull", "ghostnet", "--offline"],
        vec!["man", "--dir", &text],
    ];
    let folders = ["syntax", "field", "no-labels", "no-weights", "bad-weights", "digest"].map(path);
    failing.extend(folders.iter().map(|folder| vec!["inspect", folder]));
    for arguments in failing {
        let (ok, _, err) = run(&arguments);
        assert!(!ok && !err.is_empty(), "{arguments:?}: {err}");
        assert_eq!(repeated_phrase(&err), None, "{arguments:?}: {err}");
    }
    assert_eq!(repeated_phrase("x: no such file (1): No such file (1)"), Some("no such file 1".to_owned()));
}

#[test]
fn the_version_names_commit_and_runtime() {
    let (ok, short, _) = run(&["-V"]);
    assert!(ok && short.lines().count() == 1, "{short}");
    let (ok, long, _) = run(&["--version"]);
    assert!(ok && long.starts_with(short.trim_end()), "{long}");
    let value = |name: &str| long.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(value("ONNX Runtime").starts_with("1."), "{long}");
    assert!(!value("commit").is_empty(), "{long}");
    let output = ghostserve().arg("--version").env("GHOSTSERVE_ONNXRUNTIME", "/no/such/library.so").output().unwrap();
    let long = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && long.contains("/no/such/library.so") && long.contains("make runtime"), "{long}");
}

#[test]
fn packages_get_completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let (ok, script, err) = run(&["completions", shell]);
        assert!(ok && err.is_empty(), "{err}");
        for word in ["classify", "max-batch", "top-k"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let (ok, _, err) = run(&["completions", "basic"]);
    assert!(!ok && err.contains("bash"), "{err}");
    let (ok, page, _) = run(&["man"]);
    assert!(ok && page.contains(".TH ghostserve 1"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man");
    assert!(run(&["man", "--dir", pages.to_str().unwrap()]).0);
    let serve = std::fs::read_to_string(pages.join("ghostserve-serve.1")).unwrap();
    assert!(serve.contains("GHOSTSERVE_MAX_BATCH"), "{serve}");
    for name in ["ghostserve.1", "ghostserve-classify.1", "ghostserve-bench.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
}

#[test]
fn nothing_is_written_into_the_users_folders() {
    let home = tempfile::tempdir().unwrap();
    let photo = home.path().join("photo.jpg");
    std::fs::write(&photo, JPEG).unwrap();
    let mut command = ghostserve();
    command.args(["classify", "ghostnetv2-cifar10"]).arg(&photo).env("HOME", home.path());
    command.env_remove("XDG_CACHE_HOME").env_remove("ORT_DISABLE_TELEMETRY");
    assert!(command.output().unwrap().status.success());
    let files: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["photo.jpg"], "ONNX Runtime's telemetry stores an identifier of the machine");
}

#[test]
fn misspelt_variables_are_reported_and_do_no_harm() {
    let output = ghostserve().args(["inspect", "ghostnetv2_100"]).env("GHOSTSERVE_ONNXRUNTIM", "x").output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && err.contains("did you mean GHOSTSERVE_ONNXRUNTIME?"), "{err}");

    let mut serve = ghostserve();
    serve.env("GHOSTSERVE_MAXBATCH", "2").env("GHOSTSERVE_COLOUR", "1").env("GHOSTSERVE_SERVICE_HOST", "10.0.0.1");
    // The variables are logged first, then the start fails.
    serve.args(["serve", "--listen", "127.0.0.1:0", "--model", "nothing"]);
    let err = String::from_utf8(serve.output().unwrap().stderr).unwrap();
    assert!(err.contains("GHOSTSERVE_MAXBATCH is not a setting: did you mean GHOSTSERVE_MAX_BATCH?"), "{err}");
    assert!(err.contains("GHOSTSERVE_COLOUR") && !err.contains("GHOSTSERVE_SERVICE_HOST"), "{err}");
}

/// A server in its own process, killed if the test fails.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the server on a free port. Returns it with its address and the rest of its log.
    pub(crate) fn start(extra: &[&str]) -> (Self, String, impl Iterator<Item = String> + use<>) {
        let arguments =
            [&["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--drain-grace", "200ms"], extra];
        let (process, mut start, lines) = Self::start_until(&arguments.concat(), "ready");
        let ready: serde_json::Value = serde_json::from_str(&start.pop().unwrap()).expect("a line is a JSON object");
        (process, ready["address"].as_str().unwrap().to_owned(), lines)
    }

    /// Runs the program until its log has a line with this word. Returns it with the lines up to this one, and the
    /// rest of its log.
    fn start_until(arguments: &[&str], word: &str) -> (Self, Vec<String>, impl Iterator<Item = String> + use<>) {
        let mut child = ghostserve().args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut start = Vec::new();
        for line in lines.by_ref() {
            let is_last = line.contains(word);
            start.push(line);
            if is_last {
                break;
            }
        }
        assert!(start.last().is_some_and(|line| line.contains(word)), "it starts: {start:?}");
        (Self(child), start, lines)
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
    let ms = line["duration_ms"].as_f64().unwrap();
    assert!(ms > 0.0 && (ms * 10.0 - (ms * 10.0).round()).abs() < 1e-6, "one decimal: {ms}");
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

#[test]
fn a_terminal_that_closes_during_the_start_does_not_end_it() {
    let mut command = ghostserve();
    // The warning about the variable comes before ONNX Runtime and the model are loaded.
    command.args(["serve", "--listen", "127.0.0.1:0", "--no-calibration"]).env("GHOSTSERVE_COLOUR", "1");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let process = Process(child);
    assert!(lines.any(|line| line.contains("GHOSTSERVE_COLOUR")));
    process.signal("HUP");
    assert!(lines.any(|line| line.contains("ready")), "it starts");
    process.stop();
}

#[test]
fn a_server_whose_terminal_is_gone_goes_on() {
    let (mut process, address, log) = Process::start(&[]);
    // Nobody reads the log any more, so every line fails to be written.
    drop(log);
    process.signal("HUP");
    for _ in 0..3 {
        assert!(post(&address, JPEG).starts_with("HTTP/1.1 200"));
    }
    process.signal("TERM");
    let status = process.0.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn the_start_is_three_lines_for_people() {
    let (process, lines, _log) =
        Process::start_until(&["serve", "--listen", "127.0.0.1:0", "--no-calibration"], "ready");
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, words) in lines.iter().zip([
        &["ghostnetv2-cifar10", "sha256:", "classes=10"][..],
        &["ONNX Runtime 1.", "cpu", "f32", "workers=", "max_batch="],
        &["http://127.0.0.1:", "/v1/classify", "/docs", "/metrics"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)) && line.len() < 260, "{line}");
    }
    process.stop();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--no-calibration", "--log", "ghostserve=debug"];
    let (_process, lines, _log) = Process::start_until(&arguments, "ready");
    assert!(lines.iter().any(|line| line.contains("max_images_in_flight")), "the plan is at debug: {lines:#?}");
}

#[test]
fn an_address_may_be_a_port_or_a_name() {
    // The port is free a moment before.
    let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let listen = format!(":{port}");
    let arguments = ["serve", "--listen", &listen, "--admin-addr", "localhost:0", "--no-calibration"];
    let (_process, lines, _log) = Process::start_until(&arguments, "ready");
    let ready = lines.last().unwrap();
    assert!(ready.contains(&format!("http://127.0.0.1:{port}/v1/classify")), "{ready}");
    assert!(ready.contains(&format!("address=0.0.0.0:{port}")) && ready.contains("admin=127.0.0.1:"), "{ready}");
    let (_, metrics) = ready.split_once("metrics=http://").unwrap();
    let admin = metrics.split('/').next().unwrap();
    assert_eq!(run(&["health", "--listen", admin]), (true, "ok\n".into(), String::new()));
    assert!(run(&["health", "--listen", &admin.replace("127.0.0.1", "localhost")]).0);
    let (ok, _, err) = run(&["serve", "--listen", "localhost"]);
    assert!(!ok && err.contains("the port is missing") && err.contains("HOST:PORT, :PORT or PORT"), "{err}");
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
