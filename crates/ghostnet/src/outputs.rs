//! What a graph can be asked for besides logits.

use std::fmt;
use std::str::FromStr;

/// A selectable output of a network's graph. Its text form is the name of the graph's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Output {
    /// `logits`: N × classes, before the softmax.
    Logits,
    /// `embedding`: the pooled features as they enter the classifier, N × features.
    Embedding,
    /// `c1` to `c5`, `timm.c1` to `timm.c5`: feature maps.
    Features {
        /// Where in a stage they are taken.
        cut: Cut,
        /// 1 to 5: the base-2 logarithm of the stride (without dilation).
        level: u8,
    },
    /// `attention.S.B`: the gate of a bottleneck's DFC attention, as it multiplies the expanded features (at their size,
    /// or smaller by the upsampling).
    Attention {
        /// S of `blocks.S.B`.
        stage: usize,
        /// B of `blocks.S.B`.
        block: usize,
    },
    /// `attention.S.B.output`: the same for the features that leave a bottleneck, where the configuration has that.
    OutputAttention {
        /// S of `blocks.S.B`.
        stage: usize,
        /// B of `blocks.S.B`.
        block: usize,
    },
}

/// Where feature maps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cut {
    /// After the last bottleneck at each stride: what a detection neck wants.
    Deepest,
    /// Where timm's `features_only` takes them: the stem before its batch norm, then after each stage that ends in a
    /// stride of 2.
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

/// A text that names no output.
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
            ["timm", at] => Ok(Self::Features { cut: Cut::Timm, level: level(at).ok_or_else(unknown)? }),
            ["attention", s, b] => Ok(Self::Attention { stage: number(s)?, block: number(b)? }),
            ["attention", s, b, "output"] => Ok(Self::OutputAttention { stage: number(s)?, block: number(b)? }),
            [at] => Ok(Self::Features { cut: Cut::Deepest, level: level(at).ok_or_else(unknown)? }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_outputs_are_the_same_thing() {
        for name in ["logits", "embedding", "c3", "timm.c1", "attention.6.4", "attention.6.4.output"] {
            assert_eq!(name.parse::<Output>().unwrap().to_string(), name);
        }
        for wrong in ["", "c0", "c6", "timm", "timm.c9", "attention.1", "attention.a.b", "logits.c1", "c3.x"] {
            let error = wrong.parse::<Output>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("found `{wrong}`")), "{error}");
        }
    }
}
