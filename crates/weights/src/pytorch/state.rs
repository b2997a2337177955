//! The state dict among a pickle's values.

use super::value::{Id, Value, Values, View};
use super::{bad, shown};
use crate::WeightsError;

/// Where training scripts keep the state dict, in order of preference: the plain weights before the averaged ones,
/// which are there in addition.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "state_dict_ema", "model_ema"];

/// Keys and tensors of the state dict in the value `top`, in the file's order.
///
/// # Errors
/// [`WeightsError::Format`]: there is none, or it holds something other than tensors.
pub(super) fn dict<'v, 'a>(values: &'v Values<'a>, top: Id) -> Result<Vec<(&'a str, &'v View<'a>)>, WeightsError> {
    let Value::Dict(top) = values.get(top) else {
        return Err(bad(format!("expected a dict of tensors, found {}", values.get(top).kind())));
    };
    let wrapped = WRAPPERS.iter().find_map(|name| {
        let mut named = top.iter().filter(|(key, _)| matches!(values.get(*key), Value::Str(key) if key == name));
        named.find_map(|(_, value)| match values.get(*value) {
            Value::Dict(inner) => Some(inner),
            _ => None,
        })
    });
    let pairs = wrapped.unwrap_or(top);
    if pairs.is_empty() {
        return Err(bad("expected a dict of tensors, found it empty"));
    }
    pairs
        .iter()
        .map(|(key, value)| match (values.get(*key), values.get(*value)) {
            (&Value::Str(key), Value::Tensor(view)) => Ok((key, &**view)),
            (&Value::Str(key), other) => Err(bad(format!(
                "`{}`: expected a tensor, or a state dict under one of {WRAPPERS:?}, found {}",
                shown(key),
                other.kind()
            ))),
            (other, _) => Err(bad(format!("expected names as the keys of a state dict, found {}", other.kind()))),
        })
        .collect()
}
