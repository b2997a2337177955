//! The meaning of "calling" a name from the allow-list: the description of a storage or a tensor, checked for its form.
//!
//! This module runs nothing, allocates nothing by a number from the file, and does not look at the archive.

use super::bad;
use super::value::{ElementType, Global, PickleValue, PickleValues, StorageReference, TensorDescription, ValueId};
use crate::WeightsError;

/// Largest number of dimensions, more than any weight has. It bounds the memory of one tensor's description.
const MAX_RANK: usize = 16;

/// The result of a call.
pub(super) enum CallResult<'a> {
    /// One of the call's own arguments.
    Argument(ValueId),
    /// A new value.
    New(PickleValue<'a>),
}

/// The result of calling `callee` with the tuple `arguments`. Nothing is executed.
///
/// # Errors
/// [`WeightsError::Format`]: `callee` is not a name from the allow-list, or the arguments are not those that PyTorch
/// writes.
pub(super) fn call<'a>(
    values: &PickleValues<'a>,
    callee: ValueId,
    arguments: ValueId,
) -> Result<CallResult<'a>, WeightsError> {
    let PickleValue::Global(global) = values.get(callee) else {
        return Err(bad(format!("expected a function to call in the pickle, found {}", values.get(callee).kind())));
    };
    let PickleValue::Tuple(arguments) = values.get(arguments) else {
        return Err(bad(format!("expected arguments as a tuple, found {}", values.get(arguments).kind())));
    };
    let wrong = || bad(format!("expected the arguments that PyTorch writes for {global:?}, found {}", arguments.len()));
    match (global, &arguments[..]) {
        (Global::OrderedDict, []) => Ok(CallResult::New(PickleValue::Dict(Vec::new()))),
        (Global::Inert, _) => Ok(CallResult::New(PickleValue::Opaque)),
        (Global::Size, [sizes]) if matches!(values.get(*sizes), PickleValue::Tuple(_)) => {
            Ok(CallResult::Argument(*sizes))
        }
        // Data, `requires_grad`, hooks, and perhaps attributes.
        (Global::Parameter, [data, _, _] | [data, _, _, _]) => match values.get(*data) {
            PickleValue::Tensor(_) => Ok(CallResult::Argument(*data)),
            other => Err(bad(format!("expected a parameter made of a tensor, found {}", other.kind()))),
        },
        // Storage, offset, shape, strides, `requires_grad`, hooks, and perhaps metadata.
        (Global::Tensor, [storage, offset, shape, strides, _, _] | [storage, offset, shape, strides, _, _, _]) => {
            rebuild_tensor(values, *storage, *offset, *shape, *strides, None)
        }
        // The same, and the type before the metadata.
        (
            Global::TensorOfBytes,
            [storage, offset, shape, strides, _, _, dtype] | [storage, offset, shape, strides, _, _, dtype, _],
        ) => match values.get(*dtype) {
            PickleValue::Global(Global::Dtype(dtype)) => {
                rebuild_tensor(values, *storage, *offset, *shape, *strides, Some(*dtype))
            }
            other => Err(bad(format!("expected a tensor's type, found {}", other.kind()))),
        },
        // One of the functions above, a class, the function's arguments, attributes.
        (Global::TensorWithState, [function, _, inner, _]) => match values.get(*function) {
            // The recursion ends after one step: the inner function is never `TensorWithState`.
            PickleValue::Global(Global::Tensor | Global::TensorOfBytes | Global::Parameter) => {
                call(values, *function, *inner)
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

/// The storage that the persistent id `id` names: `("storage", class, key, device, length)`.
///
/// # Errors
/// [`WeightsError::Format`]: the id is not such a tuple.
pub(super) fn storage_reference<'a>(
    values: &PickleValues<'a>,
    id: ValueId,
) -> Result<StorageReference<'a>, WeightsError> {
    let wrong = || bad("expected a reference to a storage in the pickle, found something else");
    let PickleValue::Tuple(parts) = values.get(id) else { return Err(wrong()) };
    let [tag, class, key, _device, len] = parts[..] else { return Err(wrong()) };
    match (values.get(tag), values.get(class), values.get(key)) {
        (PickleValue::Str("storage"), PickleValue::Global(Global::Storage(dtype)), PickleValue::Str(key)) => {
            Ok(StorageReference { key, dtype: *dtype, len: read_size(values, len)? })
        }
        _ => Err(wrong()),
    }
}

/// The description of a tensor from its storage, offset, shape and strides. `dtype` is the type of its elements where
/// the storage consists of bytes.
fn rebuild_tensor<'a>(
    values: &PickleValues<'a>,
    storage: ValueId,
    offset: ValueId,
    shape: ValueId,
    strides: ValueId,
    dtype: Option<ElementType>,
) -> Result<CallResult<'a>, WeightsError> {
    let PickleValue::Storage(storage) = values.get(storage) else {
        return Err(bad(format!("expected a tensor made of a storage, found {}", values.get(storage).kind())));
    };
    let dtype = dtype.or(storage.dtype).ok_or_else(|| bad("expected a storage with a type, found one of bytes"))?;
    let (shape, strides) = (read_sizes(values, shape)?, read_sizes(values, strides)?);
    if shape.len() != strides.len() {
        return Err(bad(format!("expected a stride for each dimension, found shape {shape:?}, strides {strides:?}")));
    }
    let offset = read_size(values, offset)?;
    let description = TensorDescription { storage: *storage, dtype, offset, shape, strides };
    Ok(CallResult::New(PickleValue::Tensor(description.into())))
}

/// The tuple `id` as sizes, at most [`MAX_RANK`] of them.
fn read_sizes(values: &PickleValues<'_>, id: ValueId) -> Result<Vec<usize>, WeightsError> {
    match values.get(id) {
        PickleValue::Tuple(items) if items.len() <= MAX_RANK => {
            items.iter().map(|item| read_size(values, *item)).collect()
        }
        PickleValue::Tuple(items) => Err(bad(format!("expected at most {MAX_RANK} dimensions, found {}", items.len()))),
        other => Err(bad(format!("expected a tuple of sizes, found {}", other.kind()))),
    }
}

/// The integer `id`, which must not be negative.
fn read_size(values: &PickleValues<'_>, id: ValueId) -> Result<usize, WeightsError> {
    match values.get(id) {
        PickleValue::Int(value) => usize::try_from(*value)
            .map_err(|_| bad(format!("expected a size or an offset of at least 0, found {value}"))),
        other => Err(bad(format!("expected a size or an offset, found {}", other.kind()))),
    }
}
