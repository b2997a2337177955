//! `ghostserve bench`.

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::config::values;
use ghostserve_loadtest::report::{Statistic, WorkloadSeries};
use ghostserve_loadtest::{
    CampaignEvent, CampaignPlan, CampaignReport, ImageSet, LoadTarget, PreparedEndpoint, RequestFormat, RunSettings,
    Workload, command_without_credentials, run_campaign,
};

/// Longest time to wait for what a server says about itself.
const MAX_IDENTIFY_TIME: Duration = Duration::from_secs(2);

/// Load-test an HTTP server that takes an image as its body: this one or any other.
///
/// Without --rate it is a closed loop: each connection sends its next image when the last is answered. With --rate
/// or --rates it is an open loop: requests are due at random times, and latency counts from when they were due.
/// Several targets take turns, round by round, and are compared with the first.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Where to send images: http://HOST:PORT/PATH or grpc://HOST:PORT; HOST:PORT, :PORT and PORT are this server's
    /// /v1/classify there. NAME=http://… sets the name in the report.
    /// Several addresses with a plus between them are one target, whose connections use them in turn.
    #[arg(default_value = "http://127.0.0.1:8080/v1/classify", value_name = "URL")]
    targets: Vec<String>,

    /// Image files, or folders of them [default: one small built-in image].
    #[arg(long, num_args = 1.., value_name = "PATH")]
    images: Vec<PathBuf>,

    /// Closed loop: number of connections.
    #[arg(long, short = 'c', default_value_t = 16, value_name = "N")]
    connections: usize,

    /// Open loop: average number of requests per second.
    #[arg(long, value_name = "R", conflicts_with = "rates")]
    rate: Option<f64>,

    /// Open loop: several rates, one after the other, for the curves of the report.
    #[arg(long, value_delimiter = ',', value_name = "R,R,…")]
    rates: Vec<f64>,

    /// Also search the highest rate that meets --slo, starting at the throughput of the closed loop.
    #[arg(long)]
    search: bool,

    /// How long each run is measured.
    #[arg(long, short = 'd', default_value = "10s", value_parser = values::duration, value_name = "TIME")]
    duration: Duration,

    /// Warm-up of each run, before it is measured.
    #[arg(long, default_value = "2s", value_parser = values::duration, value_name = "TIME")]
    warm_up: Duration,

    /// Number of repetitions; medians are reported.
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,

    /// Service level objective: the latency within which an answer is in time.
    #[arg(long, default_value = "100ms", value_parser = values::duration, value_name = "TIME")]
    slo: Duration,

    /// The percentile of the latency that --search compares with --slo.
    #[arg(long, default_value_t = 99.0, value_name = "PERCENT")]
    slo_percentile: f64,

    /// How long to wait for an answer.
    #[arg(long, default_value = "10s", value_parser = values::duration, value_name = "TIME")]
    timeout: Duration,

    /// Open loop: maximum number of connections. When all are busy, requests wait.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_connections: usize,

    /// Open loop: seed of the random times.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,

    /// Closed loop: after a 429 or 503, pause as long as the answer's Retry-After says.
    #[arg(long)]
    obey_retry_after: bool,

    /// Count a success as an error if its body is not JSON.
    #[arg(long)]
    check_json: bool,

    /// A header to send with every request, as `name: value`.
    #[arg(long = "header", short = 'H', value_name = "LINE")]
    headers: Vec<String>,

    /// Content type of the body [default: by the image's first bytes].
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// Send the image as this field of a multipart/form-data body.
    #[arg(long, value_name = "FIELD")]
    multipart: Option<String>,

    /// Write all results, round by round, to this file; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a self-contained page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Fail (exit status 1) if the first target's 99th percentile is above this in any load.
    #[arg(long, value_parser = values::duration, value_name = "TIME")]
    expect_p99: Option<Duration>,
}

impl BenchArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let plan = self.campaign_plan()?;
        let format =
            RequestFormat { content_type: self.content_type, headers: self.headers, multipart: self.multipart };
        let targets: Vec<_> = self.targets.iter().map(|target| target_url(target)).collect();
        let targets = LoadTarget::parse_all(&targets)?;
        let images = if self.images.is_empty() { ImageSet::built_in() } else { ImageSet::read(&self.images)? };
        let plan = CampaignPlan { images: images.description(), ..plan };

        // One thread is enough for a load tester, and leaves the cores to the server.
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = tokio.block_on(async {
            let mut endpoints = Vec::with_capacity(targets.len());
            for target in targets {
                let mut endpoint = PreparedEndpoint::prepare(target, &images, &format, self.timeout).await?;
                endpoint.identify_server(&format, self.timeout.min(MAX_IDENTIFY_TIME)).await;
                endpoints.push(Arc::new(endpoint));
            }
            let stop = CancellationToken::new();
            let interrupted = stop.clone();
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    interrupted.cancel();
                }
            });
            let progress = RunProgress::new(&plan);
            let report = run_campaign(&endpoints, &plan, &stop, &|event| progress.show(&event)).await;
            progress.0.finish_and_clear();
            let mut report = report?;
            report.environment.command = command_without_credentials(command_line());
            anyhow::Ok(report)
        })?;

        if let Some(path) = &self.html {
            fs::write(path, report.to_html()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        match &self.json {
            Some(path) if path.as_os_str() == "-" => println!("{:#}", report.to_json()),
            json => {
                if let Some(path) = json {
                    let text = format!("{:#}\n", report.to_json());
                    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
                }
                print!("{report}");
            }
        }
        Ok(self.expect_p99.map_or(ExitCode::SUCCESS, |bound| verdict(&report, bound)))
    }

    fn campaign_plan(&self) -> anyhow::Result<CampaignPlan> {
        let open_rates = self.rate.iter().chain(&self.rates);
        if let Some(rate) = open_rates.clone().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
            bail!("a rate must be above 0, found {rate}");
        }
        for (flag, count) in [
            ("--connections", self.connections),
            ("--rounds", self.rounds),
            ("--max-connections", self.max_connections),
        ] {
            if count == 0 {
                bail!("{flag} must be at least 1, found 0");
            }
        }
        if self.duration.is_zero() {
            bail!("--duration must be above 0");
        }
        if !(0.0..=100.0).contains(&self.slo_percentile) {
            bail!("--slo-percentile must be between 0 and 100, found {}", self.slo_percentile);
        }
        let mut workloads: Vec<Workload> = open_rates.map(|rate| Workload::OpenLoop { arrival_rate: *rate }).collect();
        if workloads.is_empty() {
            workloads.push(Workload::ClosedLoop { connections: self.connections });
        }
        Ok(CampaignPlan {
            workloads,
            rounds: self.rounds,
            search: self.search,
            slo_percentile: self.slo_percentile,
            settings: RunSettings {
                duration: self.duration,
                warm_up: self.warm_up,
                timeout: self.timeout,
                slo: self.slo,
                max_connections: self.max_connections,
                seed: self.seed,
                obey_retry_after: self.obey_retry_after,
                check_json: self.check_json,
            },
            images: String::new(),
        })
    }
}

/// The URL of a target that is written as an address, `localhost:8080`, `:8080` or `8080`, with or without a name
/// (`old=:8080`). URLs stay as they are.
fn target_url(text: &str) -> String {
    if let Some((name, address)) = text.split_once('=').filter(|(name, _)| !name.contains([':', '/'])) {
        return format!("{name}={}", target_url(address));
    }
    // Several servers that are one target.
    if text.contains('+') && !text.contains('/') {
        return text.split('+').map(target_url).collect::<Vec<_>>().join("+");
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let is_host = |host: &str| {
        let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        name.chars().all(|c| c.is_alphanumeric() || ".-_".contains(c) || (c == ':' && name != host))
    };
    if port.parse::<u16>().is_err() || !is_host(host) {
        return text.to_owned();
    }
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    format!("http://{host}:{port}/v1/classify")
}

/// The command line of this process, with the program's name in place of its path.
fn command_line() -> impl Iterator<Item = String> {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once("ghostserve".to_owned()).chain(arguments)
}

/// The exit code by whether the first target's 99th percentile is within the bound in every load.
fn verdict(report: &CampaignReport, bound: Duration) -> ExitCode {
    let bound = bound.as_secs_f64() * 1e3;
    let series = report.targets.first().map(|target| &target.series[..]).unwrap_or_default();
    // A round without a success has no latency, which is worse than any.
    let has_failed_round = |series: &WorkloadSeries| series.rounds_of(Statistic::P99).iter().any(|p99| p99.is_nan());
    let is_within = |series: &WorkloadSeries| series.median_of(Statistic::P99) <= bound;
    match series.iter().find(|series| has_failed_round(series) || !is_within(series)) {
        None => ExitCode::SUCCESS,
        Some(series) if has_failed_round(series) => {
            eprintln!(
                "error: {}: expected a p99 of at most {bound} ms, but a round had no successful request",
                series.workload
            );
            ExitCode::FAILURE
        }
        Some(series) => {
            eprintln!(
                "error: {}: expected a p99 of at most {bound} ms, found {:.1} ms",
                series.workload,
                series.median_of(Statistic::P99)
            );
            ExitCode::FAILURE
        }
    }
}

/// The progress of each run, on a terminal.
struct RunProgress(ProgressBar);

impl RunProgress {
    fn new(plan: &CampaignPlan) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let length = (plan.settings.warm_up + plan.settings.duration).as_millis() as u64;
        let bar = ProgressBar::new(length);
        if let Ok(style) = ProgressStyle::with_template("{prefix:.bold} {bar:30} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, event: &CampaignEvent<'_>) {
        match event {
            CampaignEvent::RunStarted { target, workload, round } => {
                let round = round.map_or("search".to_owned(), |round| format!("round {round}"));
                self.0.set_prefix(format!("{target}, {round}, {workload}"));
            }
            CampaignEvent::RunProgressed(progress) => {
                self.0.set_position(progress.elapsed.as_millis() as u64);
                self.0.set_message(if progress.warming_up {
                    "warming up".to_owned()
                } else {
                    let p99 = progress.p99.as_secs_f64() * 1e3;
                    format!("{} ok, p99 {p99:.1} ms, {} failed", progress.finished, progress.failures)
                });
            }
            CampaignEvent::RunFinished(_) => self.0.set_position(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_can_be_written_as_an_address() {
        for (text, url) in [
            ("localhost:8080", "http://localhost:8080/v1/classify"),
            ("[::1]:8080", "http://[::1]:8080/v1/classify"),
            (":8080", "http://127.0.0.1:8080/v1/classify"),
            ("8080", "http://127.0.0.1:8080/v1/classify"),
            ("http://a:1/x", "http://a:1/x"),
            ("ours=http://a:1", "ours=http://a:1"),
            ("grpc://a:1", "grpc://a:1"),
            ("localhost", "localhost"),
            ("localhost:8080/x", "localhost:8080/x"),
            (":8080+host:8081", "http://127.0.0.1:8080/v1/classify+http://host:8081/v1/classify"),
            ("old=:8080", "old=http://127.0.0.1:8080/v1/classify"),
            ("http://host/?a=:80", "http://host/?a=:80"),
        ] {
            assert_eq!(target_url(text), url, "{text}");
        }
    }
}
