//! The values that a pickle can describe, in one flat list, and the names that it may refer to.
//!
//! Values refer to each other by position in the list. A value that contains itself is therefore harmless, and dropping
//! a deeply nested value does not recurse. No value does anything: the names that a pickle may use ([`Global::find`])
//! are labels that the pickle machine interprets. This module reads no bytes.

/// The position of a [`PickleValue`] in [`PickleValues`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ValueId(u32);

/// All values that a pickle creates.
#[derive(Debug, Default)]
pub(super) struct PickleValues<'a>(Vec<PickleValue<'a>>);

impl<'a> PickleValues<'a> {
    /// Adds a value; `None` if the list already has `limit` values.
    pub(super) fn add(&mut self, value: PickleValue<'a>, limit: usize) -> Option<ValueId> {
        let id = u32::try_from(self.0.len()).ok().filter(|_| self.0.len() < limit)?;
        self.0.push(value);
        Some(ValueId(id))
    }

    /// The value `id`, which [`PickleValues::add`] returned.
    pub(super) fn get(&self, id: ValueId) -> &PickleValue<'a> {
        &self.0[id.0 as usize]
    }

    /// The value `id`, for adding to a list or a dict.
    pub(super) fn get_mut(&mut self, id: ValueId) -> &mut PickleValue<'a> {
        &mut self.0[id.0 as usize]
    }
}

/// One value of a pickle.
#[derive(Debug)]
pub(super) enum PickleValue<'a> {
    /// An integer that fits 64 bits; larger ones are [`PickleValue::Opaque`].
    Int(i64),
    /// Text, borrowed from the pickle.
    Str(&'a str),
    /// A tuple, also `torch.Size`.
    Tuple(Vec<ValueId>),
    /// A list or a set.
    List(Vec<ValueId>),
    /// A dict, ordered or not: its keys and values in the pickle's order, repeated keys included.
    Dict(Vec<(ValueId, ValueId)>),
    /// A name from the allow-list.
    Global(Global),
    /// A reference to a storage, which is an entry of the archive.
    Storage(StorageReference<'a>),
    /// A tensor: a view of a storage.
    Tensor(Box<TensorDescription<'a>>),
    /// Something that weights do not consist of: None, a float, bytes, an argument parser's namespace.
    Opaque,
}

impl PickleValue<'_> {
    /// The kind of value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Int(_) => "an integer",
            Self::Str(_) => "text",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Opaque => "something else",
        }
    }
}

/// A storage as the pickle names it, not yet checked against the archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageReference<'a> {
    /// The archive's entry is called `data/` followed by this key.
    pub(super) key: &'a str,
    /// The type of its elements; `None` for a storage of bytes, whose tensors have a type of their own.
    pub(super) dtype: Option<ElementType>,
    /// Number of elements; of bytes if it has no type.
    pub(super) len: usize,
}

/// A tensor as the pickle describes it, not yet checked against its storage.
#[derive(Debug)]
pub(super) struct TensorDescription<'a> {
    /// The storage that holds the elements.
    pub(super) storage: StorageReference<'a>,
    /// The type of the elements.
    pub(super) dtype: ElementType,
    /// Position of the first element in the storage, in elements.
    pub(super) offset: usize,
    /// Size of each dimension, outermost first.
    pub(super) shape: Vec<usize>,
    /// For each dimension, the distance between neighbours, in elements.
    pub(super) strides: Vec<usize>,
}

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    /// A type that is not read: its name in the style of safetensors, and its size in bytes.
    Other(&'static str, usize),
}

impl ElementType {
    /// Bytes per element; never 0.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, size) => size,
        }
    }

    /// The type of the elements of PyTorch's storage class `class`.
    fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::Other("I64", 8),
            "IntStorage" => Self::Other("I32", 4),
            "ShortStorage" => Self::Other("I16", 2),
            "CharStorage" => Self::Other("I8", 1),
            "ByteStorage" => Self::Other("U8", 1),
            "BoolStorage" => Self::Other("BOOL", 1),
            _ => return None,
        })
    }

    /// The type that PyTorch calls `name`.
    fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "float64" => Self::F64,
            "float32" => Self::F32,
            "float16" => Self::F16,
            "bfloat16" => Self::Bf16,
            "int64" => Self::Other("I64", 8),
            "int32" => Self::Other("I32", 4),
            "int16" => Self::Other("I16", 2),
            "int8" => Self::Other("I8", 1),
            "uint8" => Self::Other("U8", 1),
            "uint16" => Self::Other("U16", 2),
            "uint32" => Self::Other("U32", 4),
            "uint64" => Self::Other("U64", 8),
            "bool" => Self::Other("BOOL", 1),
            "float8_e4m3fn" => Self::Other("F8_E4M3", 1),
            "float8_e5m2" => Self::Other("F8_E5M2", 1),
            _ => return None,
        })
    }
}

/// A name that a pickle may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`, which state dicts are.
    OrderedDict,
    /// `torch.Size`: stands for the tuple that is its argument.
    Size,
    /// A class of storages: with elements of one type, or (`None`) with bytes.
    Storage(Option<ElementType>),
    /// A type of elements.
    Dtype(ElementType),
    /// `_rebuild_tensor_v2`: a tensor from a typed storage.
    Tensor,
    /// `_rebuild_tensor_v3`: a tensor from a storage of bytes, for types that have no storage class.
    TensorOfBytes,
    /// `_rebuild_parameter` and its variant with attributes: stands for its tensor.
    Parameter,
    /// `_rebuild_from_type_v2`: a tensor with attached attributes.
    TensorWithState,
    /// A class or function that training stores beside the weights. It stands for nothing; its arguments are ignored.
    Inert,
}

impl Global {
    /// The allow-list: the meaning of the name `module.name`, or `None` if weights do not need it.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "Size") => Self::Size,
            ("torch._utils", "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::TensorOfBytes,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::Parameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::TensorWithState,
            ("torch", "UntypedStorage") | ("torch.storage", "UntypedStorage") => Self::Storage(None),
            // The best accuracy is often a NumPy scalar, whose bytes go through `_codecs.encode`. Schedulers store
            // counters, training scripts their arguments.
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
            | ("numpy", "dtype")
            | ("_codecs", "encode")
            | ("collections", "Counter")
            | ("argparse", "Namespace")
            | ("torch", "device" | "Tensor")
            | ("torch.nn.parameter", "Parameter") => Self::Inert,
            ("torch", name) => {
                let storage = ElementType::of_storage(name).map(|dtype| Self::Storage(Some(dtype)));
                return storage.or_else(|| ElementType::of_name(name).map(Self::Dtype));
            }
            _ => return None,
        })
    }
}
