//! What clients of every protocol may ask for, from the words they use to what the service takes.

use super::problem::Problem;
use crate::service::{Ask, Code};
use ghostserve_ghostnet::{Cut, Output};

/// Predictions for an image if nothing is said.
const DEFAULT_TOP_K: usize = 5;

pub(super) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidParameter, detail)
}

/// Which predictions are wanted.
pub(super) fn ask(top_k: Option<usize>, min_confidence: Option<f32>, classes: usize) -> Result<Ask, Problem> {
    let min_confidence = min_confidence.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&min_confidence) {
        return Err(invalid(format!("`min_confidence` must be between 0 and 1, found {min_confidence}")));
    }
    Ok(Ask { top_k: top_k.unwrap_or(DEFAULT_TOP_K.min(classes)), min_confidence })
}

/// The outputs that some levels are, each once, in one order: the same set is the same session.
pub(super) fn levels<'a>(names: impl IntoIterator<Item = &'a str>, cut: Cut) -> Result<Vec<Output>, Problem> {
    let mut outputs = Vec::new();
    for name in names {
        let output = match name.parse::<Output>() {
            Ok(Output::Embedding) => Output::Embedding,
            Ok(Output::Features { cut: Cut::Deepest, level }) => Output::Features { cut, level },
            _ => {
                let name: String = name.chars().take(50).collect();
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

/// `320`, or `416x320`: width and height. Gives height and width.
pub(super) fn size(text: &str) -> Result<[usize; 2], Problem> {
    let side = |text: &str| text.parse::<u16>().ok().map(usize::from);
    let sides = match text.split_once('x') {
        None => side(text).map(|side| [side, side]),
        Some((width, height)) => side(height).zip(side(width)).map(|(height, width)| [height, width]),
    };
    sides.ok_or_else(|| {
        let text: String = text.chars().take(50).collect();
        invalid(format!("`size` must be a side or WIDTHxHEIGHT, such as 320 or 416x320; found `{text}`"))
    })
}

/// What the tensor of an output is called. Levels are called the same in both cuts.
pub(super) fn tensor_name(output: Output) -> String {
    match output {
        Output::Features { level, .. } => format!("c{level}"),
        Output::Embedding => "embedding".to_owned(),
        _ => "attention".to_owned(),
    }
}
