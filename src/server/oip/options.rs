//! The parameters of an inference request.

use tokio::time::Duration;

use super::plan::{InferRequest, Parameter};
use crate::cores::Priority;
use crate::preprocess::Fit;
use crate::server::parameters::{invalid, size};
use crate::server::problem::Problem;
use crate::server::tensors::ElementType;
use crate::text::shortened;
use ghostserve_ghostnet::Cut;

/// The parameters of a request for feature maps. A request for scores has only those that change its priority and
/// deadline.
pub(super) struct InferOptions {
    pub(super) size: Option<[usize; 2]>,
    pub(super) fit: Fit,
    pub(super) cut: Cut,
    pub(super) dtype: ElementType,
    /// Whether embeddings are scaled to length 1.
    pub(super) unit: bool,
}

impl InferOptions {
    /// Reads the parameters, and applies `priority` and `timeout` to the request. As everywhere, unknown parameters
    /// are refused.
    pub(super) fn read(request: &mut InferRequest, features: bool) -> Result<Self, Problem> {
        let mut options =
            Self { size: None, fit: Fit::default(), cut: Cut::Deepest, dtype: ElementType::F32, unit: false };
        for (name, value) in &request.parameters {
            let wrong = |expected: &str| invalid(format!("the parameter `{name}` is {expected}, found {value:?}"));
            match (name.as_str(), value) {
                // There are no sequences, so it does not matter where one begins.
                ("sequence_id" | "sequence_start" | "sequence_end" | "binary_data_output", _) => {}
                // Triton's clients send these to every server, for example to have a stream's end marked.
                (name, _) if name.starts_with("triton_") => {}
                ("priority", Parameter::Number(priority)) => {
                    // 1 is the highest; 0 is the default.
                    if *priority > 1.0 {
                        request.context.priority = Priority::Background;
                    }
                }
                ("timeout", Parameter::Number(microseconds)) if (0.0..1e15).contains(microseconds) => {
                    if *microseconds > 0.0 {
                        let deadline = request.start + Duration::from_micros(*microseconds as u64);
                        request.context.deadline = request.context.deadline.min(deadline);
                    }
                }
                ("priority" | "timeout", _) => return Err(wrong("a whole number")),
                (name, value) if features && options.set(name, value)? => {}
                _ => {
                    let known = match features {
                        true => "priority, timeout, size, fit, cut, dtype and normalize",
                        false => "priority and timeout",
                    };
                    let name = shortened(name, 50);
                    return Err(invalid(format!("the parameter `{name}` is not known; this model has {known}")));
                }
            }
        }
        Ok(options)
    }

    /// Sets a parameter that only feature maps have. Returns `false` if there is none of that name.
    fn set(&mut self, name: &str, value: &Parameter) -> Result<bool, Problem> {
        let wrong = |expected: &str| invalid(format!("the parameter `{name}` is {expected}, found {value:?}"));
        match (name, value) {
            ("size", Parameter::Text(text)) => self.size = Some(size(text)?),
            ("size", Parameter::Number(side)) if side.fract() == 0.0 => self.size = Some(size(&side.to_string())?),
            ("fit", Parameter::Text(text)) => {
                self.fit = match text.as_str() {
                    "crop" => Fit::Crop,
                    "letterbox" => Fit::Letterbox,
                    "stretch" => Fit::Stretch,
                    _ => return Err(wrong("crop, letterbox or stretch")),
                }
            }
            ("cut", Parameter::Text(text)) => {
                self.cut = match text.as_str() {
                    "deepest" => Cut::Deepest,
                    "timm" => Cut::Timm,
                    _ => return Err(wrong("deepest or timm")),
                }
            }
            ("dtype", Parameter::Text(text)) => {
                self.dtype = match text.as_str() {
                    "f32" => ElementType::F32,
                    "f16" => ElementType::F16,
                    _ => return Err(wrong("f32 or f16")),
                }
            }
            ("normalize", Parameter::Bool(unit)) => self.unit = *unit,
            ("size" | "fit" | "cut" | "dtype", _) => return Err(wrong("a text")),
            ("normalize", _) => return Err(wrong("true or false")),
            _ => return Ok(false),
        }
        Ok(true)
    }
}
