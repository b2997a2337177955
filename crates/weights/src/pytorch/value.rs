//! What a pickle can describe here: values in one flat list, and the names it may refer to.
//!
//! Values refer to each other by position in the list, so that one that contains itself is no trouble, and dropping a
//! deep one is no recursion. There is no value that does anything: the names a pickle may use ([`Global::find`]) are
//! labels that the machine gives a meaning to. This module reads no bytes.

/// The position of a [`Value`] in [`Values`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Id(u32);

/// All values that a pickle made.
#[derive(Debug, Default)]
pub(super) struct Values<'a>(Vec<Value<'a>>);

impl<'a> Values<'a> {
    /// Adds a value; `None` when there are `limit` already.
    pub(super) fn add(&mut self, value: Value<'a>, limit: usize) -> Option<Id> {
        let id = u32::try_from(self.0.len()).ok().filter(|_| self.0.len() < limit)?;
        self.0.push(value);
        Some(Id(id))
    }

    /// The value `id`, which came from [`Values::add`].
    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.0[id.0 as usize]
    }

    /// The same, to add to a list or a dict.
    pub(super) fn get_mut(&mut self, id: Id) -> &mut Value<'a> {
        &mut self.0[id.0 as usize]
    }
}

/// One value.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// An integer that fits; others are [`Value::Opaque`].
    Int(i64),
    /// Text, borrowed from the pickle.
    Str(&'a str),
    /// A tuple, also `torch.Size`.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// A dict, ordered or not, with its keys as they came.
    Dict(Vec<(Id, Id)>),
    /// A name from the allow-list.
    Global(Global),
    /// A reference to a storage: an entry of the archive.
    Storage(Storage<'a>),
    /// A tensor: a view of a storage.
    Tensor(Box<View<'a>>),
    /// Something that weights are not made of: None, a number, bytes, an argument parser's namespace.
    Opaque,
}

impl Value<'_> {
    /// What it is, for messages.
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

/// A storage as the pickle names it; nothing about it has been held against the archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    /// The entry is `data/` and this.
    pub(super) key: &'a str,
    /// The type of its elements; `None` for bytes, whose tensors bring a type.
    pub(super) dtype: Option<Dtype>,
    /// How many elements, or bytes.
    pub(super) len: usize,
}

/// A tensor as the pickle describes it; nothing about it has been held against the storage.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// Where its elements are.
    pub(super) storage: Storage<'a>,
    /// Their type.
    pub(super) dtype: Dtype,
    /// Position of the first, in elements.
    pub(super) offset: usize,
    /// Size of each dimension.
    pub(super) shape: Vec<usize>,
    /// For each dimension, how many elements lie between neighbours.
    pub(super) strides: Vec<usize>,
}

/// The type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    /// One that is not read: its name in the style of safetensors, and its size in bytes.
    Other(&'static str, usize),
}

impl Dtype {
    /// Bytes an element; never 0.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, size) => size,
        }
    }

    /// PyTorch's name of the type's storage class.
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

    /// PyTorch's name of the type itself.
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
    /// `torch.Size`: stands for the tuple it is given.
    Size,
    /// A class of storages: with elements of a type, or of bytes.
    Storage(Option<Dtype>),
    /// A type of elements.
    Dtype(Dtype),
    /// `_rebuild_tensor_v2`: a tensor from a typed storage.
    Tensor,
    /// `_rebuild_tensor_v3`: a tensor from a storage of bytes, for types younger than storages' classes.
    TensorOfBytes,
    /// `_rebuild_parameter` and its variant with attributes: stands for its tensor.
    Parameter,
    /// `_rebuild_from_type_v2`: a tensor to which somebody attached attributes.
    TensorWithState,
    /// What training leaves beside the weights. It stands for nothing and is not looked into.
    Inert,
}

impl Global {
    /// The allow-list.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "Size") => Self::Size,
            ("torch._utils", "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::TensorOfBytes,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::Parameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::TensorWithState,
            ("torch", "UntypedStorage") | ("torch.storage", "UntypedStorage") => Self::Storage(None),
            // The best accuracy is often a NumPy scalar, whose bytes go through `_codecs.encode`; schedulers keep
            // counters, training scripts their arguments.
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
            | ("numpy", "dtype")
            | ("_codecs", "encode")
            | ("collections", "Counter")
            | ("argparse", "Namespace")
            | ("torch", "device" | "Tensor")
            | ("torch.nn.parameter", "Parameter") => Self::Inert,
            ("torch", name) => {
                let storage = Dtype::of_storage(name).map(|dtype| Self::Storage(Some(dtype)));
                return storage.or_else(|| Dtype::of_name(name).map(Self::Dtype));
            }
            _ => return None,
        })
    }
}
