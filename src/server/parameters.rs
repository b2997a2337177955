//! Parameters that all protocols share: from their values in a request to the types of the service.

use super::problem::Problem;
use crate::service::{Code, PredictionOptions, ServedModel};
use crate::text::shortened;
use ghostserve_ghostnet::{Cut, Output};

pub(super) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidParameter, detail)
}

/// The predictions that a request wants of a model. The maximum of `top_k` is checked when the model runs.
pub(super) fn prediction_options(
    top_k: Option<usize>,
    min_confidence: Option<f32>,
    model: &ServedModel,
) -> Result<PredictionOptions, Problem> {
    let default = PredictionOptions::default_for(model.labels.len());
    let min_confidence = min_confidence.unwrap_or(default.min_confidence);
    if !(0.0..=1.0).contains(&min_confidence) {
        return Err(invalid(format!("`min_confidence` must be between 0 and 1, found {min_confidence}")));
    }
    Ok(PredictionOptions { top_k: top_k.unwrap_or(default.top_k), min_confidence })
}

/// The outputs with these names, each once. Their order does not depend on that of the names, so that the same set
/// uses the same session.
pub(super) fn levels<'a>(names: impl IntoIterator<Item = &'a str>, cut: Cut) -> Result<Vec<Output>, Problem> {
    let mut outputs = Vec::new();
    for name in names {
        let output = match name.parse::<Output>() {
            Ok(Output::Embedding) => Output::Embedding,
            Ok(Output::Features { cut: Cut::Deepest, level }) => Output::Features { cut, level },
            _ => {
                let name = shortened(name, 50);
                return Err(invalid(format!("`levels` takes c1 to c5 and embedding; found `{name}`")));
            }
        };
        if outputs.contains(&output) {
            return Err(invalid(format!("`levels` has `{name}` twice")));
        }
        outputs.push(output);
    }
    outputs.sort_by_key(|output| (*output == Output::Embedding, *output));
    Ok(outputs)
}

/// Height and width from `320`, or from `416x320`: width and height.
pub(super) fn size(text: &str) -> Result<[usize; 2], Problem> {
    let side = |text: &str| text.parse::<u16>().ok().map(usize::from);
    let sides = match text.split_once('x') {
        None => side(text).map(|side| [side, side]),
        Some((width, height)) => side(height).zip(side(width)).map(|(height, width)| [height, width]),
    };
    sides.ok_or_else(|| {
        let text = shortened(text, 50);
        invalid(format!("`size` must be a side or WIDTHxHEIGHT, such as 320 or 416x320; found `{text}`"))
    })
}

/// The name of an output's tensor. A level has the same name in both cuts.
pub(super) fn tensor_name(output: Output) -> String {
    match output {
        Output::Features { level, .. } => format!("c{level}"),
        Output::Embedding => "embedding".to_owned(),
        _ => "attention".to_owned(),
    }
}
