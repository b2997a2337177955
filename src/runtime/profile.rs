//! The time that a graph takes by operator: the sums of ONNX Runtime's own profile.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ort::value::TensorRef;
use serde::Deserialize;

use super::{Backend, PreparedGraph, Runtime, RuntimeError};

/// The time that all nodes of one operator take in one run.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorTime {
    /// The operator's name.
    pub operator: String,
    /// Number of its nodes in the optimised graph.
    pub nodes: usize,
    /// Milliseconds per run.
    pub milliseconds: f64,
}

/// One event of ONNX Runtime's trace.
#[derive(Deserialize)]
struct TraceEvent {
    cat: String,
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: TraceArguments,
}

#[derive(Default, Deserialize)]
struct TraceArguments {
    op_name: Option<String>,
}

impl Runtime {
    /// Runs a graph of one input `runs` times on one thread, with ONNX Runtime's profiler, which writes its trace to
    /// a file in `folder`. Returns the operators by their time, the most expensive first.
    ///
    /// # Errors
    /// The runtime does not accept the graph or the input, or the trace cannot be written or read.
    pub fn profile(
        &self,
        graph: &PreparedGraph,
        shape: [usize; 4],
        input: &[f32],
        runs: usize,
        folder: PathBuf,
    ) -> Result<Vec<OperatorTime>, RuntimeError> {
        let load = |e: &dyn std::fmt::Display| RuntimeError::Load(e.to_string());
        let mut session = self.open(graph, Backend::default(), 1, Some(shape[0]), Some(&folder.join("profile")))?;
        let name = session.inputs().first().map(|i| i.name().to_owned()).unwrap_or_default();
        for _ in 0..runs {
            let input = TensorRef::from_array_view((shape, input)).map_err(|e| load(&e))?;
            session.run(ort::inputs![name.as_str() => input]).map_err(|e| load(&e))?;
        }
        let trace = session.end_profiling().map_err(|e| load(&e))?;
        let trace = std::fs::read(trace).map_err(|e| load(&e))?;
        let events: Vec<TraceEvent> = serde_json::from_slice(&trace).map_err(|e| load(&e))?;

        let mut operators: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        for event in events.iter().filter(|e| e.cat == "Node" && e.name.ends_with("_kernel_time")) {
            let Some(operator) = event.args.op_name.clone() else { continue };
            let (nodes, microseconds) = operators.entry(operator).or_default();
            *nodes += 1;
            *microseconds += event.dur;
        }
        let runs = runs.max(1);
        let mut times: Vec<_> = operators
            .into_iter()
            .map(|(operator, (events, microseconds))| OperatorTime {
                operator,
                nodes: events / runs,
                milliseconds: microseconds / 1e3 / runs as f64,
            })
            .collect();
        times.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(times)
    }
}
