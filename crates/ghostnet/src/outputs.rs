//! The outputs that a network's graph can have: logits, embedding, feature maps, attention maps.

use std::fmt;
use std::str::FromStr;

/// A selectable output of a network's graph. Its text form is the output's name in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Output {
    /// `logits`: N × classes, before the softmax.
    Logits,
    /// `embedding`: the pooled features that enter the classifier, N × features.
    Embedding,
    /// `c1` to `c5`, `timm.c1` to `timm.c5`: feature maps.
    Features {
        /// The rule that selects the layer.
        cut: Cut,
        /// The base-2 logarithm of the stride (without dilation), 1 to 5.
        level: u8,
    },
    /// `attention.S.B`: the DFC gate that multiplies a bottleneck's expanded features. It has their size, or the pooled
    /// size if the gate function comes before the upsampling.
    Attention {
        /// The stage: S of `blocks.S.B`.
        stage: usize,
        /// The bottleneck in the stage: B of `blocks.S.B`.
        block: usize,
    },
    /// `attention.S.B.output`: the same for a bottleneck's output features, if the configuration enhances them.
    OutputAttention {
        /// The stage: S of `blocks.S.B`.
        stage: usize,
        /// The bottleneck in the stage: B of `blocks.S.B`.
        block: usize,
    },
}

/// The rule that selects the layers whose maps are the features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cut {
    /// The last bottleneck at each stride, as a detection neck needs it.
    Deepest,
    /// The layers of timm's `features_only`: the stem before its batch norm, then each stage that ends in stride 2.
    Timm,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logits => f.write_str("logits"),
            Self::Embedding => f.write_str("embedding"),
            Self::Features { cut: Cut::Deepest, level } => write!(f, "c{level}"),
            Self::Features { cut: Cut::Timm, level } => write!(f, "timm.c{level}"),
            Self::Attention { stage, block } => write!(f, "attention.{stage}.{block}"),
            Self::OutputAttention { stage, block } => write!(f, "attention.{stage}.{block}.output"),
        }
    }
}

/// The error for a text that names no output. Holds the text.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "expected `logits`, `embedding`, `c1` to `c5`, `timm.c1` to `timm.c5`, `attention.STAGE.BLOCK` or \
     `attention.STAGE.BLOCK.output`, found `{0}`"
)]
pub struct UnknownOutput(String);

impl FromStr for Output {
    type Err = UnknownOutput;

    fn from_str(text: &str) -> Result<Self, UnknownOutput> {
        let unknown = || UnknownOutput(text.to_owned());
        let level = |text: &str| match text.strip_prefix('c')?.parse() {
            Ok(level @ 1..=5) => Some(level),
            _ => None,
        };
        let number = |text: &str| text.parse().map_err(|_| unknown());
        match text.split('.').collect::<Vec<_>>()[..] {
            ["logits"] => Ok(Self::Logits),
            ["embedding"] => Ok(Self::Embedding),
            ["timm", name] => Ok(Self::Features { cut: Cut::Timm, level: level(name).ok_or_else(unknown)? }),
            ["attention", stage, block] => Ok(Self::Attention { stage: number(stage)?, block: number(block)? }),
            ["attention", stage, block, "output"] => {
                Ok(Self::OutputAttention { stage: number(stage)?, block: number(block)? })
            }
            [name] => Ok(Self::Features { cut: Cut::Deepest, level: level(name).ok_or_else(unknown)? }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn output_names_are_parsed_and_printed_alike() {
        for name in ["logits", "embedding", "c3", "timm.c1", "attention.6.4", "attention.6.4.output"] {
            assert_eq!(name.parse::<Output>().unwrap().to_string(), name);
        }
        for wrong in ["", "c0", "c6", "timm", "timm.c9", "attention.1", "attention.a.b", "logits.c1", "c3.x"] {
            let error = wrong.parse::<Output>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("found `{wrong}`")), "{error}");
        }
    }
}
