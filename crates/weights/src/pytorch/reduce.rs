//! What "calling" a name from the allow-list stands for: a note of a storage or a tensor, checked for its form.
//!
//! Nothing here runs, allocates by a number from the file, or looks at the archive.

use super::bad;
use super::value::{Dtype, Global, Id, Storage, Value, Values, View};
use crate::WeightsError;

/// More dimensions than any weight has; it bounds what one tensor's note can take.
const MAX_RANK: usize = 16;

/// What a call stands for.
pub(super) enum Made<'a> {
    /// One of its own arguments.
    Old(Id),
    /// A new value.
    New(Value<'a>),
}

/// What calling `callee` with the tuple `arguments` stands for.
///
/// # Errors
/// [`WeightsError::Format`]: it is not a name from the allow-list, or the arguments are not what PyTorch writes.
pub(super) fn call<'a>(values: &Values<'a>, callee: Id, arguments: Id) -> Result<Made<'a>, WeightsError> {
    let Value::Global(global) = values.get(callee) else {
        return Err(bad(format!("expected a function to call in the pickle, found {}", values.get(callee).kind())));
    };
    let Value::Tuple(arguments) = values.get(arguments) else {
        return Err(bad(format!("expected arguments as a tuple, found {}", values.get(arguments).kind())));
    };
    let wrong = || bad(format!("expected the arguments that PyTorch writes for {global:?}, found {}", arguments.len()));
    match (global, &arguments[..]) {
        (Global::OrderedDict, []) => Ok(Made::New(Value::Dict(Vec::new()))),
        (Global::Inert, _) => Ok(Made::New(Value::Opaque)),
        (Global::Size, [size]) if matches!(values.get(*size), Value::Tuple(_)) => Ok(Made::Old(*size)),
        // Data, whether it wants a gradient, hooks, and perhaps attributes.
        (Global::Parameter, [data, _, _] | [data, _, _, _]) => match values.get(*data) {
            Value::Tensor(_) => Ok(Made::Old(*data)),
            other => Err(bad(format!("expected a parameter made of a tensor, found {}", other.kind()))),
        },
        // Storage, offset, size, strides, whether it wants a gradient, hooks, and perhaps metadata.
        (Global::Tensor, [storage, offset, size, strides, _, _] | [storage, offset, size, strides, _, _, _]) => {
            view(values, [*storage, *offset, *size, *strides], None).map(|view| Made::New(Value::Tensor(view.into())))
        }
        (
            Global::TensorOfBytes,
            [storage, offset, size, strides, _, _, dtype] | [storage, offset, size, strides, _, _, dtype, _],
        ) => match values.get(*dtype) {
            Value::Global(Global::Dtype(dtype)) => view(values, [*storage, *offset, *size, *strides], Some(*dtype))
                .map(|view| Made::New(Value::Tensor(view.into()))),
            other => Err(bad(format!("expected a tensor's type, found {}", other.kind()))),
        },
        // A function from above, a class, the function's arguments, attributes.
        (Global::TensorWithState, [function, _, inner, _]) => match values.get(*function) {
            // One step, not a recursion: the function is never this one.
            Value::Global(Global::Tensor | Global::TensorOfBytes | Global::Parameter) => {
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
/// [`WeightsError::Format`]: it is something else.
pub(super) fn storage<'a>(values: &Values<'a>, id: Id) -> Result<Storage<'a>, WeightsError> {
    let wrong = || bad("expected a reference to a storage in the pickle, found something else");
    let Value::Tuple(parts) = values.get(id) else { return Err(wrong()) };
    let [tag, class, key, _device, len] = parts[..] else { return Err(wrong()) };
    match (values.get(tag), values.get(class), values.get(key)) {
        (Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key)) => {
            Ok(Storage { key, dtype: *dtype, len: natural(values, len)? })
        }
        _ => Err(wrong()),
    }
}

/// The note of a tensor; `dtype` is given where the storage is one of bytes.
fn view<'a>(values: &Values<'a>, parts: [Id; 4], dtype: Option<Dtype>) -> Result<View<'a>, WeightsError> {
    let [storage, offset, shape, strides] = parts;
    let Value::Storage(storage) = values.get(storage) else {
        return Err(bad(format!("expected a tensor made of a storage, found {}", values.get(storage).kind())));
    };
    let dtype = dtype.or(storage.dtype).ok_or_else(|| bad("expected a storage with a type, found one of bytes"))?;
    let (shape, strides) = (naturals(values, shape)?, naturals(values, strides)?);
    if shape.len() != strides.len() {
        return Err(bad(format!("expected a stride for each dimension, found shape {shape:?}, strides {strides:?}")));
    }
    Ok(View { storage: *storage, dtype, offset: natural(values, offset)?, shape, strides })
}

fn naturals(values: &Values<'_>, id: Id) -> Result<Vec<usize>, WeightsError> {
    match values.get(id) {
        Value::Tuple(items) if items.len() <= MAX_RANK => items.iter().map(|item| natural(values, *item)).collect(),
        Value::Tuple(items) => Err(bad(format!("expected at most {MAX_RANK} dimensions, found {}", items.len()))),
        other => Err(bad(format!("expected a tuple of sizes, found {}", other.kind()))),
    }
}

fn natural(values: &Values<'_>, id: Id) -> Result<usize, WeightsError> {
    match values.get(id) {
        Value::Int(value) => usize::try_from(*value)
            .map_err(|_| bad(format!("expected a size or an offset of at least 0, found {value}"))),
        other => Err(bad(format!("expected a size or an offset, found {}", other.kind()))),
    }
}
