//! Finds the state dict among a pickle's values.

use super::value::{PickleValue, PickleValues, TensorDescription, ValueId};
use super::{bad, limits, shown};
use crate::WeightsError;

/// Keys under which training scripts store the state dict, in order of preference: the plain weights before the
/// averaged ones, which a file has in addition.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "state_dict_ema", "model_ema"];

/// Keys and tensors of the state dict in the value `top`, in the file's order.
///
/// # Errors
/// [`WeightsError::Format`]: there is no state dict, it holds something other than tensors, or more than
/// [`limits::PAIRS`] of them.
pub(super) fn state_dict<'v, 'a>(
    values: &'v PickleValues<'a>,
    top: ValueId,
) -> Result<Vec<(&'a str, &'v TensorDescription<'a>)>, WeightsError> {
    let PickleValue::Dict(top) = values.get(top) else {
        return Err(bad(format!("expected a dict of tensors, found {}", values.get(top).kind())));
    };
    let wrapped = WRAPPERS.iter().find_map(|name| {
        let mut named = top.iter().filter(|(key, _)| matches!(values.get(*key), PickleValue::Str(key) if key == name));
        named.find_map(|(_, value)| match values.get(*value) {
            PickleValue::Dict(inner) => Some(inner),
            _ => None,
        })
    });
    let pairs = wrapped.unwrap_or(top);
    if pairs.is_empty() {
        return Err(bad("expected a dict of tensors, found it empty"));
    }
    if pairs.len() > limits::PAIRS {
        return Err(bad(format!(
            "expected at most {} tensors in the state dict, found {}",
            limits::PAIRS,
            pairs.len()
        )));
    }
    pairs
        .iter()
        .map(|(key, value)| match (values.get(*key), values.get(*value)) {
            (&PickleValue::Str(key), PickleValue::Tensor(tensor)) => Ok((key, &**tensor)),
            (&PickleValue::Str(key), other) => Err(bad(format!(
                "`{}`: expected a tensor, or a state dict under one of {WRAPPERS:?}, found {}",
                shown(key),
                other.kind()
            ))),
            (other, _) => Err(bad(format!("expected names as the keys of a state dict, found {}", other.kind()))),
        })
        .collect()
}
